"""What the trajectories of a run add up to: calls by host, ends, and where the gap is."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from rnow.records import FloatArray, ToolCallRecord, ToolOutcome
from rnow.reports.kinds import KINDS
from rnow.reports.rollouts import Rollout

Mean = tuple[float, int]  # a sum and of how many


@dataclass(slots=True)
class Statistics:
    """Counts that grow with each rollout. The gap is student less teacher, nats a token."""

    num: int = 0  # that were learned from; calls, ends and gaps are of these
    held_out: Counter[str] = field(default_factory=Counter)  # rollouts, and tokens sampled and read
    calls: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)  # (tool, host)
    seconds: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    num_cut: int = 0  # results of tools
    ends: Counter[str] = field(default_factory=Counter)
    gaps: dict[str, dict[str, Mean]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, rollout: Rollout, kinds: list[int]) -> None:
        """Count one rollout; `kinds` has one entry a sampled token, in their order."""
        trajectory = rollout.trajectory
        if rollout.held_out is not None:
            actions = trajectory.num_actions
            read = trajectory.num_tokens - actions
            self.held_out.update({"rollouts": 1, "sampled": actions, "read": read})
            return
        self.num += 1
        self.ends[trajectory.end_reason.value] += 1
        for call in trajectory.tool_calls:
            key = (call.name or "unreadable", host_of(call))
            self.calls.setdefault(key, Counter())[call.outcome.value] += 1
            self.seconds[key] += call.duration_s
            self.num_cut += call.truncated
        if rollout.gaps is None:
            return
        spans = np.log2(np.maximum(np.arange(len(rollout.gaps)), 0.5)).astype(int) + 1
        self._add("turn", trajectory.turn_index[trajectory.action_mask], rollout.gaps, str)
        self._add("kind", np.asarray(kinds), rollout.gaps, KINDS.__getitem__)
        self._add("position", spans, rollout.gaps, _span_name)

    def means(self, by: str) -> dict[str, float]:
        """Return the mean gap by "turn", "kind" or "position", as "4–7": sampled tokens, from 0."""
        order = KINDS.index if by == "kind" else _first_number
        return {key: self.gaps[by][key][0] / self.gaps[by][key][1]
                for key in sorted(self.gaps[by], key=order)}  # fmt: skip

    def call_rows(self) -> list[list[str]]:
        """Return tool, host, calls, each outcome, seconds a call: the most called first."""
        rows = sorted(self.calls.items(), key=lambda item: (-item[1].total(), item[0]))
        return [
            [
                *key,
                str(outcomes.total()),
                *(str(outcomes[outcome.value]) for outcome in ToolOutcome),
                f"{self.seconds[key] / outcomes.total():.2f}",
            ]
            for key, outcomes in rows
        ]

    def _add(
        self, by: str, keys: NDArray[Any], gaps: FloatArray, name: Callable[[int], str]
    ) -> None:
        for key in np.unique(keys).tolist():
            of = gaps[keys == key]
            total, count = self.gaps[by].get(name(key), (0.0, 0))
            self.gaps[by][name(key)] = (total + float(of.sum(dtype=float)), count + len(of))


def _span_name(number: int) -> str:
    """Name spans of doubling length, from the first one on: 0, 1, 2–3, 4–7, …"""
    first = 1 << number >> 1
    return f"{first}–{2 * first - 1}" if first > 1 else str(first)


def _first_number(key: str) -> int:
    return int(key.partition("–")[0])


def host_of(call: ToolCallRecord) -> str:
    """Return the host of the first URL among a call's arguments, "" where there is none."""
    try:
        arguments = json.loads(call.arguments)
        values = arguments.values() if isinstance(arguments, dict) else ()
        texts = (value for value in values if isinstance(value, str) and "://" in value)
        return next((urlsplit(text).hostname or "" for text in texts), "")
    except (ValueError, RecursionError):  # what a model wrote may be anything
        return ""
