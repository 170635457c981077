"""An evaluation as trackers show it: figures as a table, answers as texts that act on nothing."""

from collections.abc import Mapping
from typing import Any

from rnow.chat.template import ChatTemplate
from rnow.chat.transcript import transcript
from rnow.evaluation.figures import Evaluation
from rnow.runtime.console import inert
from rnow.training.trackers.base import EvaluationReport, Table

MAX_TRANSCRIPTS = 32
MAX_TRANSCRIPT_CHARS = 20_000
COLUMNS = ("prompts", "accuracy", "low", "high", "n", "best constant")


def evaluation_report(step: int, evaluation: Evaluation, chat: ChatTemplate) -> EvaluationReport:
    """Return what trackers are told of the student after `step` updates.

    Of long evaluations they get the first answers: the same prompts each time, to be compared.
    """
    shown = evaluation.answers[:MAX_TRANSCRIPTS]
    transcripts = [
        (
            f"line {answer.prompt.line}",
            "right" if answer.grade.correct else "wrong",
            _cut(inert(transcript(answer.trajectory, chat))),
        )
        for answer in shown
    ]
    return EvaluationReport(
        step=step,
        columns=COLUMNS,
        rows=_rows(evaluation),
        transcripts=transcripts,
        note=f"the first {len(shown)} of {len(evaluation.answers)} answers",
    )


def _rows(evaluation: Evaluation) -> Table:
    figures = evaluation.as_json()
    groups = {"all": figures}
    groups |= {f"task {name or '(none)'}": one for name, one in figures["tasks"].items()}
    groups |= {"with an answer": figures["not_na"], "answer is NA": figures["na"]}
    return [_row(name, one) for name, one in groups.items() if one is not None]


def _row(name: str, figures: Mapping[str, Any]) -> list[str | float]:
    low, high = figures["interval"]
    numbers = (figures["accuracy"], low, high, figures["n"])
    constant = figures["constant"]
    best = "unknown" if constant is None else round(constant, 4)
    return [inert(name), *(round(number, 4) for number in numbers), best]


def _cut(text: str) -> str:
    more = len(text) - MAX_TRANSCRIPT_CHARS
    return text if more <= 0 else f"{text[:MAX_TRANSCRIPT_CHARS]}\n… {more} characters more"
