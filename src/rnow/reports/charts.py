"""The charts of a report as plotly reads them; a run has its colour, its dash and its symbol."""

from collections.abc import Mapping, Sequence
from typing import Any

from rnow.reports.evidence import Evidence, Line
from rnow.reports.statistics import Statistics
from rnow.training.registry import find_metric

# After Okabe and Ito's, which people of all kinds of sight tell apart; each 3 : 1 at least against
# the page's paper, in the light and in the dark.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#c4659b",
    "#3d93c9",
    "#b37a00",
    "#7f7f7f",
    "#9a6cc4",
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star")
PATTERNS = ("", "/", "x", ".", "+", "\\", "-", "|")
CURVES = {
    "reverse_kl": "Reverse KL, with its interval at 95 %",
    "rollout/right": "Right answers of training rollouts that a grader judged",
    "mismatch_kl": "Engine and trainer apart",
    "rollout/action_tokens": "Sampled tokens of a rollout",
    "rollout/repetition": "Repetition: 4-grams that their turn already had",
    "tokens_per_s": "Sampled tokens a second",
}
GAPS = {
    "turn": "Gap by turn",
    "kind": "Gap by kind of text",
    "position": "Gap by position (sampled tokens of a rollout)",
}

Run = tuple[Evidence, Statistics]


def charts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return figures in the page's order, each with a title and what stands on its axes.

    One without a point is left out: nothing was evaluated, or graded.
    """
    lines = [_curves(name, runs) for name in CURVES]
    shares = [
        _bars(title, "nats/token", [(run.name, found.means(by)) for run, found in runs])
        for by, title in GAPS.items()
    ]
    ends = [(run.name, _shares(found.ends)) for run, found in runs]
    figures = [
        lines[0],
        _accuracy(runs),
        *lines[1:],
        _cut(runs),
        *[_stages(run) for run, _ in runs],
        _bars("How rollouts ended", "share of rollouts", ends),
        *shares,
    ]
    return [figure for figure in figures if any(trace["x"] for trace in figure["data"])]


def _curves(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    row = find_metric(name)
    assert row is not None, name
    traces = [
        {**_line(number, run.name, *_points(run.metrics, name)), **_within(run.metrics, name)}
        for number, (run, _) in enumerate(runs)
    ]
    healthy = f"; healthy: {row.healthy}" if row.healthy else ""
    return _figure(f"{CURVES[name]} ({name}{healthy})", row.unit, traces, across="step")


def _within(lines: Sequence[Line], name: str) -> Line:
    """Return the bars of a curve's intervals, where its steps have them."""
    values = [line.get(f"{name}/within", 0.0) for line in lines if name in line]
    return {"error_y": {"type": "data", "array": values}} if any(values) else {}


def _accuracy(runs: Sequence[Run]) -> dict[str, Any]:
    traces = []
    for number, (run, _) in enumerate(runs):
        steps, values = _points(run.evaluations, "accuracy")
        bounds = [line["interval"] for line in run.evaluations]
        error = {
            "type": "data",
            "symmetric": False,
            "array": [high - value for (_, high), value in zip(bounds, values, strict=True)],
            "arrayminus": [value - low for (low, _), value in zip(bounds, values, strict=True)],
        }
        traces.append({**_line(number, run.name, steps, values), "error_y": error})
    title = "Held-out accuracy, with its interval at 95 %"
    return _figure(title, "share of prompts", traces, across="updates")


def _cut(runs: Sequence[Run]) -> dict[str, Any]:
    traces = []
    for number, (run, _) in enumerate(runs):
        values = [
            (line["rollout/end_max_tokens"] + line["rollout/end_context_full"])
            / max(1, line["rollout/trajectories"])
            for line in run.metrics
        ]
        traces.append(_line(number, run.name, [line["step"] for line in run.metrics], values))
    return _figure("Rollouts cut before their end", "share of rollouts", traces, across="step")


def _stages(run: Evidence) -> dict[str, Any]:
    names = sorted({name for line in run.metrics for name in line if name.startswith("time/")})
    traces = [
        {
            "type": "bar",
            "name": name.removeprefix("time/"),
            "x": [line["step"] for line in run.metrics],
            "y": [round(line.get(name, 0.0), 3) for line in run.metrics],
            "marker": _marker(number),
        }
        for number, name in enumerate(name for name in names if name != "time/step")
    ]
    figure = _figure(f"Time by stage: {run.name}", "s", traces, across="step")
    figure["layout"]["barmode"] = "stack"
    return figure


def _bars(title: str, unit: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> dict[str, Any]:
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": list(values),
            "y": [round(value, 4) for value in values.values()],
            "marker": _marker(number),
        }
        for number, (name, values) in enumerate(rows)
    ]
    figure = _figure(title, unit, traces, across="")
    figure["layout"]["xaxis"]["type"] = "category"
    figure["layout"]["yaxis"]["rangemode"] = "tozero"
    return figure


def _figure(title: str, unit: str, traces: list[Line], *, across: str) -> dict[str, Any]:
    # Where all are 0, a share below 0 is not to be thought of.
    rangemode = "tozero" if unit.startswith("share") else "normal"
    upwards = {"title": {"text": unit}, "rangemode": rangemode}
    layout = {"xaxis": {"title": {"text": across}}, "yaxis": upwards}
    return {"title": title, "data": traces, "layout": layout}


def _line(number: int, name: str, x: list[Any], y: list[Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": x,
        "y": y,
        "line": {
            "color": COLOURS[number % len(COLOURS)],
            "dash": DASHES[number % len(DASHES)],
        },
        "marker": {"symbol": _nth(SYMBOLS, number)},
    }


def _marker(number: int) -> dict[str, Any]:
    pattern = {"shape": _nth(PATTERNS, number), "fillmode": "overlay"}
    return {"color": _nth(COLOURS, number), "pattern": pattern}


def _nth(styles: Sequence[str], number: int) -> str:
    return styles[number % len(styles)]


def _points(lines: Sequence[Line], name: str) -> tuple[list[Any], list[Any]]:
    found = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in found], [value for _, value in found]


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    return {name: count / sum(counts.values()) for name, count in sorted(counts.items())}
