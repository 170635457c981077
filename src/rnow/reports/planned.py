"""What a run was to take, and what it has taken so far. Pure."""

from dataclasses import dataclass
from typing import Any

from rnow.reports.evidence import Evidence
from rnow.runtime.console import duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One row. `share` is of what was planned for as many steps as are done; None: not known."""

    name: str
    planned: str  # of the whole run
    so_far: str
    share: float | None
    basis: str  # what the plan was made from


def compare_plan(
    run: Evidence, *, held_out_tokens: tuple[float, float] = (0.0, 0.0)
) -> list[Compared]:
    """Return the rows; none where the run kept no plan.

    `held_out_tokens`: sampled and read in evaluations, which no line of a step counts.
    """
    steps = _value(run.plan, "steps")
    if not steps:
        return []
    lines, done = run.metrics, len(run.metrics) / steps
    sampled = sum(line.get("tokens/action", 0.0) for line in lines)
    total = sum(line.get("tokens/total", 0.0) for line in lines)
    seconds = [line["time/step"] - line.get("time/eval", 0.0) for line in lines]
    rows: list[tuple[str, str, float | None, float]] = [
        ("steps", "steps", float(len(lines)), done),
        (
            "rollouts",
            "rollouts",
            sum(line.get("rollout/trajectories", 0.0) for line in lines),
            done,
        ),
        ("tokens_out", "tokens sampled", sampled + held_out_tokens[0], done),
        ("tokens_in", "tokens read", total - sampled + held_out_tokens[1], done),
        ("step_s", "time a step, without evaluations", _mean(seconds), 1.0),
        ("total_s", "time of all steps", sum(line["time/step"] for line in lines), done),
        ("disk_bytes", "disk: checkpoints, weights, model", run.disk.get("disk_bytes"), 1.0),
        ("journal_bytes", "disk: journal", run.disk.get("journal_bytes"), done),
    ]
    found = (_compared(run.plan, *row) for row in rows)
    return [row for row in found if row is not None]


def _compared(
    plan: dict[str, Any], key: str, name: str, happened: float | None, due: float
) -> Compared | None:
    planned = _value(plan, key)
    if planned is None or happened is None:
        return None
    return Compared(
        name=name,
        planned=_text(key, planned),
        so_far=_text(key, happened),
        share=happened / (planned * due) if planned * due > 0 else None,
        basis=str(plan[key].get("basis", "")),
    )


def _value(plan: dict[str, Any], key: str) -> float | None:
    """Return a number of the plan, which another version of rnow may have written."""
    item = plan.get(key)
    value = item.get("value") if isinstance(item, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _text(key: str, value: float) -> str:
    if key.endswith("_s"):
        return f"{value:.1f} s" if value < 60 else duration(value)
    if key.endswith("_bytes"):
        return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
    return f"{value:,.0f}"
