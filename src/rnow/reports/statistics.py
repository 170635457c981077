"""What the trajectories of a run add up to: calls by host, ends, and where the gap is."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from rnow.records import ScoredTrajectory, ToolCallRecord, ToolOutcome
from rnow.reports.kinds import KINDS

Mean = tuple[float, int]  # a sum and of how many


@dataclass(slots=True)
class Statistics:
    """Counts that grow with each trajectory. The gap is sampler less teacher, nats a token."""

    num: int = 0
    calls: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)  # (tool, host)
    seconds: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    num_cut: int = 0  # results of tools
    ends: Counter[str] = field(default_factory=Counter)
    gaps: dict[str, dict[str, Mean]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, scored: ScoredTrajectory, kinds: list[int]) -> None:
        """Count one trajectory; `kinds` has one entry a sampled token, in their order."""
        trajectory = scored.trajectory
        self.num += 1
        self.ends[trajectory.end_reason.value] += 1
        for call in trajectory.tool_calls:
            key = (call.name or "unreadable", host_of(call))
            self.calls.setdefault(key, Counter())[call.outcome.value] += 1
            self.seconds[key] += call.duration_s
            self.num_cut += call.truncated
        mask = trajectory.action_mask
        gaps = (trajectory.sampler_logprobs - scored.teacher_logprobs)[mask].tolist()
        turns = trajectory.turn_index[mask].tolist()
        for position, (gap, turn, kind) in enumerate(zip(gaps, turns, kinds, strict=True)):
            self._add("turn", str(turn), gap)
            self._add("kind", KINDS[kind], gap)
            self._add("position", str(1 << position.bit_length() >> 1), gap)

    def means(self, by: str) -> dict[str, float]:
        """Return the mean gap by "turn", "kind" or "position" (from there to twice as far)."""
        order = KINDS.index if by == "kind" else int
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

    def _add(self, by: str, key: str, gap: float) -> None:
        total, count = self.gaps[by].get(key, (0.0, 0))
        self.gaps[by][key] = (total + gap, count + 1)


def host_of(call: ToolCallRecord) -> str:
    """Return the host of the first URL among a call's arguments, "" where there is none."""
    try:
        arguments = json.loads(call.arguments)
        values = arguments.values() if isinstance(arguments, dict) else ()
        texts = (value for value in values if isinstance(value, str) and "://" in value)
        return next((urlsplit(text).hostname or "" for text in texts), "")
    except (ValueError, RecursionError):  # what a model wrote may be anything
        return ""
