"""The page: one file that opens from a disk, asks no network for anything, and obeys no text of it.

Texts of pages and models reach it as JSON whose `<`, `>` and `&` are escaped, and its script puts
them into text nodes alone. The policy in its head lets no script run but its own two.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rnow.config.keys import flat_values
from rnow.records import ToolOutcome
from rnow.reports.charts import charts
from rnow.reports.diagnoses import Diagnosis, diagnose
from rnow.reports.evidence import (
    Evidence,
    read_calling,
    read_evidence,
    read_tokenizer,
)
from rnow.reports.kinds import KINDS
from rnow.reports.planned import Compared, compare_plan
from rnow.reports.rollouts import evaluations_read, read_rollouts
from rnow.reports.rollouts import steps_read as steps_read_of
from rnow.reports.sample import MAX_BYTES, RULE, Sample, fit, kinds, show
from rnow.reports.statistics import Statistics
from rnow.runs.archive import journals
from rnow.runs.folder import RunDirectory
from rnow.training.registry import Metric, find_metric

_TEMPLATES = Path(__file__).parent
CALL_COLUMNS = ("tool", "host", "calls", *(each.value for each in ToolOutcome), "s a call")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """What the page says of one run."""

    evidence: Evidence
    statistics: Statistics
    diagnoses: list[Diagnosis]
    transcripts: list[dict[str, Any]]
    num_steps_read: int
    num_steps: int  # whose journals are there
    compared: list[Compared]  # with the plan
    has_words: bool  # the student's tokenizer was found


def make_report(runs: Sequence[RunDirectory]) -> str:
    """Return the page of these runs; raise UsageError where one is none."""
    room = MAX_BYTES // len(runs)
    names = _labels([run.path.name for run in runs])
    reports = [_report(run, name, max_bytes=room) for run, name in zip(runs, names, strict=True)]
    return render(reports)


def render(reports: Sequence[RunReport]) -> str:
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    data = {
        "charts": charts([(each.evidence, each.statistics) for each in reports]),
        "kinds": KINDS,
        "transcripts": [
            {"run": number, **one}
            for number, each in enumerate(reports)
            for one in each.transcripts
        ],
        "runs": [each.evidence.name for each in reports],
    }
    return environment.get_template("report.html.jinja").render(
        reports=reports,
        data=data,
        rows=_metric_rows([each.evidence for each in reports]),
        compared=any(each.compared for each in reports),
        settings=_different_settings([each.evidence for each in reports]),
        call_columns=CALL_COLUMNS,
        rule=RULE,
        nonce=secrets.token_urlsafe(16),
        # The end tag of a script would end it inside a text too.
        plotly=get_plotlyjs().replace("</script", "<\\/script"),
        script=(_TEMPLATES / "report.js").read_text(encoding="utf-8"),
        style=(_TEMPLATES / "report.css").read_text(encoding="utf-8"),
    )


def _labels(names: Sequence[str]) -> list[str]:
    """Return names of which no two are alike: those of runs of several projects may be."""
    return [
        f"{name} ({names[: at + 1].count(name)})" if names.count(name) > 1 else name
        for at, name in enumerate(names)
    ]


def _report(run: RunDirectory, name: str, *, max_bytes: int) -> RunReport:
    evidence = replace(read_evidence(run), name=name)
    tokenizer, calling = read_tokenizer(run), read_calling(run)
    statistics, sample = Statistics(), Sample()
    for rollout in read_rollouts(run):
        # Of held-out answers no gap is known.
        is_held_out = rollout.held_out is not None
        found = [] if is_held_out else kinds(rollout.trajectory, tokenizer, calling)
        statistics.add(rollout, found)
        sample.add(rollout)
    showing: Callable[..., Any] = partial(show, tokenizer=tokenizer, calling=calling)
    return RunReport(
        evidence=evidence,
        statistics=statistics,
        diagnoses=diagnose(evidence),
        transcripts=fit(sample, showing, max_bytes),
        num_steps_read=len(steps_read_of(run)),
        num_steps=len(journals(run.path / "trajectories")),
        compared=compare_plan(
            evidence, held_out_tokens=_held_out_tokens(evidence, statistics, run)
        ),
        has_words=tokenizer is not None,
    )


def _held_out_tokens(
    evidence: Evidence, statistics: Statistics, run: RunDirectory
) -> tuple[float, float]:
    """Return what all evaluations sampled and read, by those of them that were read here."""
    num_read = len(evaluations_read(run))
    share = len(evidence.evaluations) / num_read if num_read else 0.0
    return share * statistics.held_out["sampled"], share * statistics.held_out["read"]


def _metric_rows(runs: Sequence[Evidence]) -> list[tuple[str, Metric | None, list[str], bool]]:
    """Return each number's name, its row, its first and last value in each run, and its health."""
    rows = []
    for name in sorted({name for run in runs for line in run.metrics for name in line}):
        metric = find_metric(name)
        values = [[line[name] for line in run.metrics if name in line] for run in runs]
        texts = [f"{of[0]:.4g} → {of[-1]:.4g}" if of else "" for of in values]
        well = metric is None or all(metric.is_healthy(one) for of in values for one in of[-1:])
        rows.append((name, metric, texts, well))
    return rows


def _different_settings(runs: Sequence[Evidence]) -> list[tuple[str, list[str]]]:
    flat = [flat_values(run.config) for run in runs]
    keys = sorted({key for one in flat for key in one})
    table = [(key, [str(one.get(key, "")) for one in flat]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]
