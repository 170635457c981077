"""What `rnow check` says of one part of a project."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rnow.errors import Problem


class Outcome(StrEnum):
    OK = "ok"
    PROBLEM = "problem"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One checked part.

    Point(name="data", outcome=Outcome.OK, message="8 prompts, 6 steps", problems=())
    """

    name: str
    outcome: Outcome
    message: str  # what was found, or why it was not checked
    problems: tuple[Problem, ...]  # warnings too, which leave the outcome at ok


def point(name: str, message: str, problems: Sequence[Problem] = ()) -> Point:
    """Make a checked point: a problem if one of `problems` is an error."""
    errors = sum(problem.severity == "error" for problem in problems)
    if not errors:
        return Point(name=name, outcome=Outcome.OK, message=message, problems=tuple(problems))
    count = "1 problem" if errors == 1 else f"{errors} problems"
    return Point(name=name, outcome=Outcome.PROBLEM, message=count, problems=tuple(problems))


def not_checked(name: str, reason: str) -> Point:
    return Point(name=name, outcome=Outcome.NOT_CHECKED, message=reason, problems=())
