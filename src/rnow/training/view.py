"""A run as one sees it at a glance: what it is at, how it goes, and where its curves point. Pure.

    status of the run ─┐
    lines of steps ────┼─▶ view ─▶ lines of text, none wider than the terminal
    evaluations ───────┘

`rnow run` shows it in its own terminal, `rnow status --watch` in another from the run's files.
"""

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from rnow.runtime.console import duration, inert

Line = Mapping[str, Any]

NUM_TRENDS = 32  # steps in a sparkline
MAX_GPUS = 8
_BARS = "▁▂▃▄▅▆▇█"
_BAR_WIDTH = 20
_NAME_WIDTH = 12
_FIRST_ODD_CHAR = 0x1F000  # pictures: terminals do not agree on their width


def view(
    status: Line, history: Sequence[Line], evaluations: Sequence[Line], *, width: int
) -> Group:
    """Return the whole view; what a run does not have, as GPUs, takes no line."""
    rows = [
        ("", _head(status)),
        ("", ahead_text(status)),
        *_rollouts(status.get("rollouts", {})),
        *_trend("reverse_kl", history, "reverse_kl", shown="{:.4f}"),
        *_trend("accuracy", evaluations, "accuracy", shown="{:.3f}"),
        *_speeds(status),
        *((f"GPU {gpu['index']}", _gpu(gpu)) for gpu in status.get("gpus", ())[:MAX_GPUS]),
        ("", str(status.get("notice") or "")),
        ("answer", status.get("rollouts", {}).get("answer", "")),
        ("", str(status.get("keys") or "")),
    ]
    return Group(*(_row(name, text, width) for name, text in rows if text))


def step_line(line: Line, *, num_steps: int, eta_s: float) -> str:
    """Return a finished step as one plain line."""
    if line.get("trainer/skipped"):
        return f"step {line['step'] + 1}/{num_steps}  SKIPPED: numbers were not finite"
    return (
        f"step {line['step'] + 1}/{num_steps}"
        f"  reverse_kl {line['reverse_kl']:.4f}"
        f"  mismatch_kl {line['mismatch_kl']:.1e}"
        f"  action tokens {line['tokens/action']:.0f}"
        f"  turns {line['rollout/turns']:.2f}"
        f"  {line['time/step']:.1f} s ({', '.join(_stages(line))})"
        f"  ETA {duration(eta_s)}"
    )


def _stages(line: Line) -> Iterator[str]:
    """Give the seconds of the step's three stages, and of the others where they are a tenth of it:
    weights of a full fine-tuning take longer to write than its updates."""
    yield f"rollout {line['time/rollout']:.1f}"
    yield f"teacher +{line['time/teacher']:.1f}"
    yield f"update {line['time/update']:.1f}"
    for stage in ("publish", "eval"):
        if (seconds := line.get(f"time/{stage}", 0.0)) > line["time/step"] / 10:
            yield f"{stage} {seconds:.1f}"


def ahead_text(status: Line) -> str:
    """Say which steps roll out or are scored beside what is worked at; "" where none does."""
    under_way = [
        f"of step {one['step'] + 1}: {one['done']} of {one['total']}"
        for one in status.get("ahead") or ()
    ]
    return f"meanwhile rollouts {', '.join(under_way)}" if under_way else ""


def sparkline(values: Sequence[float]) -> str:
    """Return a bar for each of the last values, from the least of them to the most.

    >>> sparkline([4.0, 2.0, 1.0, 1.0])
    '█▃▁▁'
    """
    shown = values[-NUM_TRENDS:]
    low, high = min(shown), max(shown)
    if low == high:
        return _BARS[0] * len(shown)
    scale = (len(_BARS) - 1) / (high - low)
    return "".join(_BARS[round((value - low) * scale)] for value in shown)


def eta_s(history: Sequence[Line], *, num_steps: int, step: int, in_step_s: float) -> float | None:
    """Return the seconds until the end if steps go on as the last five did; None before one."""
    recent = [float(line["time/step"]) for line in history[-5:]]
    if not recent:
        return None
    mean: float = sum(recent) / len(recent)
    return max(0.0, (num_steps - step) * mean - min(in_step_s, mean))


def _row(name: str, text: str, width: int) -> Text:
    """Return one line that no terminal breaks, whatever a model wrote into it."""
    text = "".join(map(_safe, inert(text[:width]).replace("\n", " ")))
    row = Text(f"{name:<{_NAME_WIDTH}}" if name else "", style="bold", end="")
    row.append(text, style="not bold")
    row.truncate(max(1, width - 1), overflow="ellipsis")
    return Text.assemble(row, no_wrap=True, overflow="crop")


def _safe(char: str) -> str:
    is_odd = unicodedata.category(char).startswith("M") or ord(char) >= _FIRST_ODD_CHAR
    return "·" if is_odd else char


def _head(status: Line) -> str:
    done, total, num_steps = status["done"], status["total"], status["num_steps"]
    share = status["step"] / max(1, num_steps)
    filled = round(_BAR_WIDTH * min(1.0, share))
    count = "" if total is None else f" {done}/{total}"
    eta = status.get("eta_s")
    left = "" if eta is None else f"  ETA {duration(eta)}"
    return (
        f"step {min(status['step'] + 1, num_steps)}/{num_steps}  {status['stage']}{count}  "
        f"{duration(status['stage_s'])}{left}  {'━' * filled}{'─' * (_BAR_WIDTH - filled)}"
    )


def _rollouts(tally: Line) -> list[tuple[str, str]]:
    if not tally or not tally["running"] + tally["done"] + tally["failed"]:
        return []
    failed = f", {tally['failed']} tries failed" if tally["failed"] else ""
    rows = [
        (
            "rollouts",
            f"{tally['done']} done, {tally['running']} running{failed}, {tally['turns']} turns",
        )
    ]
    calls = tally["calls"]
    if calls:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(calls.items()))
        rows.append(("tool calls", f"{sum(calls.values())}: {kinds}"))
    return rows


def _trend(name: str, lines: Sequence[Line], key: str, *, shown: str) -> list[tuple[str, str]]:
    values = [value for line in lines if math.isfinite(value := line.get(key, math.nan))]
    return [(name, f"{shown.format(values[-1])}  {sparkline(values)}")] if values else []


def _speeds(status: Line) -> list[tuple[str, str]]:
    tally = status.get("rollouts", {})
    rates = {
        "student": tally.get("student_tokens_per_s", 0.0),
        "teacher": tally.get("teacher_tokens_per_s", 0.0),
        "trainer": status.get("trainer_tokens_per_s", 0.0),
    }
    text = "  ".join(f"{role} {rate:,.0f}" for role, rate in rates.items() if rate)
    return [("speed", f"{text} tokens/s" if text else "")]


def _gpu(gpu: Line) -> str:
    used, total = gpu["used_mib"] / 1024, gpu["total_mib"] / 1024
    return f"{used:.1f} of {total:.1f} GiB, {gpu['use_percent']} % busy"
