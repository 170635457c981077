"""What finished steps say of the steps to come. Pure.

Tokens are told by every step of the same models and prompts. Seconds are told by steps that were
also made in the same way on the same hardware, and not by a process's first, which waits for what
is loaded, compiled and fetched once.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Bound = Literal["student", "teacher", "trainer", "tools"]
Line = Mapping[str, float]  # of metrics.jsonl


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Lines of metrics.jsonl, newest last. Measured(counted=(first, second), timed=(second,))"""

    counted: tuple[Line, ...] = ()
    timed: tuple[Line, ...] = ()

    def tokens_a_rollout(self) -> tuple[float, float]:
        """Return what a rollout samples, and what it reads besides."""
        rollouts = sum(line["rollout/trajectories"] for line in self.counted)
        sampled = sum(line["tokens/action"] for line in self.counted) / rollouts
        whole = sum(line["tokens/total"] for line in self.counted) / rollouts
        return sampled, whole - sampled

    def step_s(self, num_rollouts: float) -> float:
        """Return the seconds of a step of so many rollouts, evaluations apart."""
        return self._scaled(
            [line["time/step"] - line.get("time/eval", 0.0) for line in self.timed], num_rollouts
        )

    def parts(self, num_rollouts: float, *, concurrency: int) -> dict[Bound, float]:
        """Return the seconds of a step by what is waited for. What is neither rollouts nor teacher
        (publishing, probing) is the trainer's, and where rollouts go on beside an update, that.
        """
        rolled = self._scaled([line["time/rollout"] for line in self.timed], num_rollouts)
        waited = self._scaled([line["time/teacher"] for line in self.timed], num_rollouts)
        in_tools = self._scaled([line["tool/seconds"] for line in self.timed], num_rollouts)
        updated = self._scaled([line.get("time/update", 0.0) for line in self.timed], num_rollouts)
        # Rollouts wait for their tools side by side.
        tools = min(rolled, in_tools / min(concurrency, num_rollouts))
        return {
            "student": rolled - tools,
            "tools": tools,
            "teacher": waited,
            "trainer": max(updated, self.step_s(num_rollouts) - rolled - waited),
        }

    def evaluation_s(self) -> float | None:
        """Return the seconds of one evaluation; None where none was measured."""
        seen = [line["time/eval"] for line in self.timed if "eval/accuracy" in line]
        # A run's first step often has the only one.
        seen = seen or [line["time/eval"] for line in self.counted if "eval/accuracy" in line]
        return statistics.mean(seen) if seen else None

    def basis(self, lines: Sequence[Line]) -> str:
        """Say what a number is from that these lines gave: all of them, or those that are timed."""
        many = "s" if len(lines) > 1 else ""
        apart = ", a run's first apart" if len(lines) < len(self.counted) else ""
        return f"from {len(lines)} measured step{many} of this project{apart}"

    def _scaled(self, seconds: Sequence[float], num_rollouts: float) -> float:
        """Return the usual seconds of so many rollouts: the mean without its outermost tenths."""
        a_rollout = sorted(
            value / max(1.0, line["rollout/trajectories"])
            for value, line in zip(seconds, self.timed, strict=True)
        )
        cut = max(1, len(a_rollout) // 10) if len(a_rollout) > 2 else 0
        kept = a_rollout[cut : len(a_rollout) - cut]
        return statistics.mean(kept) * num_rollouts
