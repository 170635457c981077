"""What graders are asked, and answer: in the reward worker, and here where no rewards.py is needed.

{"type": "grade", "row": {"grader", "expected", "metadata"}, "answer"}
    ─▶ {"correct", "extracted"}
{"type": "compare", "rows": [...], "values": [...]}
    ─▶ {"same": ["0110", ...]}            for each row, whether each value is the expected one
{"error": "…"} where a grader raised, or said neither True nor False
"""

import asyncio
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rnow.core.grader import GraderFunction
from rnow.errors import GradingError

_MAX_SHOWN_CHARS = 100

Row = Mapping[str, Any]  # {"grader": name, "expected": text, "metadata": of the entry}


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """The verdict on one answer. Grade(correct=True, extracted="Imatinib")"""

    correct: bool
    extracted: str | None  # the value that was compared; None: the answer has none
    reward: float | None = None  # the total, where rewards have judged: then nothing is extracted

    @property
    def format_ok(self) -> bool:
        """Whether the answer has the form that its grader reads."""
        return self.extracted is not None or self.reward is not None


class Graders(Protocol):
    """The graders of a project, wherever they run."""

    def knows(self, name: str) -> bool: ...

    def takes_metadata(self, name: str) -> bool:
        """Say whether a grader looks at more of an entry than its expected answer."""
        ...

    async def ask(self, call: Mapping[str, Any], *, limit_s: float | None = None) -> dict[str, Any]:
        """Return the answer to a call, or {"error": sentence}.

        `limit_s`: seconds, instead of what the grader has itself for one answer.
        """
        ...


class LocalGraders:
    """Functions that are known in this process, and can do no harm to it."""

    def __init__(self, functions: Mapping[str, GraderFunction]) -> None:
        self._functions = functions

    def knows(self, name: str) -> bool:
        return name in self._functions

    def takes_metadata(self, name: str) -> bool:
        return self._functions[name]._takes_metadata

    async def ask(self, call: Mapping[str, Any], *, limit_s: float | None = None) -> dict[str, Any]:
        return answer_call(self._functions, call)


def answer_call(functions: Mapping[str, GraderFunction], call: Mapping[str, Any]) -> dict[str, Any]:
    """Let a call's graders answer it; GradingError for an answer that is none."""
    if call["type"] == "grade":
        return _grade(functions[call["row"]["grader"]], call["row"], call["answer"])
    return {
        "same": [
            "".join("01"[_same(functions[row["grader"]], row, value)] for value in call["values"])
            for row in call["rows"]
        ]
    }


def _grade(function: GraderFunction, row: Row, answer: str) -> dict[str, Any]:
    value = awaited(function._extract(answer, row["metadata"]))
    if value is not None and not isinstance(value, str):
        raise GradingError(f"its extract gave {_show(value)}, which is neither a text nor None")
    value = (value or "").strip()
    if not value:
        return {"correct": False, "extracted": None}
    return {"correct": _same(function, row, value), "extracted": value}


def _same(function: GraderFunction, row: Row, value: str) -> bool:
    more = (row["metadata"],) if function._takes_metadata else ()
    said = awaited(function(row["expected"], value, *more))
    if not isinstance(said, bool | np.bool_):
        raise GradingError(f"returned {_show(said)}, which is neither True nor False")
    return bool(said)


def awaited(said: Any) -> Any:
    """Return what a function gave once it is there: plain ones, too, may give an awaitable."""

    async def wait() -> Any:
        return await said

    return asyncio.run(wait()) if inspect.isawaitable(said) else said


def _show(value: Any) -> str:
    return repr(value)[:_MAX_SHOWN_CHARS]
