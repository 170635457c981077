"""What tools did in some rollouts: calls, errors by code, truncations, latency. Pure."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rnow.records import ToolCallRecord, ToolOutcome, Trajectory

# How rnow.browser, and tools that follow it, tell the model that there is no page.
_ERROR = re.compile(r"ERROR ([a-z0-9_]+):")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolStatistics:
    """All calls of one tool.

    ToolStatistics(name="browse", num_calls=7, errors={"http_404": 1}, num_truncated=0, …)
    """

    name: str  # "" for calls that could not be read
    num_calls: int
    errors: dict[str, int]  # by code, the commonest first
    num_truncated: int
    mean_s: float
    max_s: float

    def as_json(self) -> dict[str, Any]:
        return {
            "calls": self.num_calls,
            "errors": self.errors,
            "truncated": self.num_truncated,
            "mean_s": round(self.mean_s, 3),
            "max_s": round(self.max_s, 3),
        }


def tool_statistics(trajectories: Iterable[Trajectory]) -> tuple[ToolStatistics, ...]:
    """Return the statistics of each tool that was called, the most called first."""
    by_name: dict[str, list[ToolCallRecord]] = {}
    for trajectory in trajectories:
        for call in trajectory.tool_calls:
            by_name.setdefault(call.name, []).append(call)
    ordered = sorted(by_name.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(_statistics(name, calls) for name, calls in ordered)


def error_code(call: ToolCallRecord) -> str | None:
    """Return what went wrong with a call: its outcome, or the code that the tool gave; else None.

    A tool that answers `ERROR http_404: …` has done its work, and the model got no page.
    """
    if call.outcome is not ToolOutcome.OK:
        return call.outcome.value
    found = _ERROR.match(call.text)
    return found[1] if found else None


def _statistics(name: str, calls: list[ToolCallRecord]) -> ToolStatistics:
    codes = Counter(code for call in calls if (code := error_code(call)) is not None)
    return ToolStatistics(
        name=name,
        num_calls=len(calls),
        errors=dict(codes.most_common()),
        num_truncated=sum(call.truncated for call in calls),
        mean_s=sum(call.duration_s for call in calls) / len(calls),
        max_s=max(call.duration_s for call in calls),
    )
