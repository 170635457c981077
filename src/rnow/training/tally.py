"""What the rollouts of one step, or of one evaluation, have done so far, for whoever looks on.

Nothing is computed from it: metrics.jsonl has the numbers of a step that has ended.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from rnow.chat.conversation import split_thinking, turn_text
from rnow.chat.template import ChatTemplate
from rnow.records import ScoredTrajectory, Trajectory
from rnow.rollout.attempt import Attempt
from rnow.rollout.many import Roll
from rnow.runtime.console import inert

MAX_ANSWER_CHARS = 400

Score = Callable[[Trajectory], Awaitable[ScoredTrajectory]]


class Tally:
    """Counts what goes through the two functions that it gives back; `begin` sets all to 0."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.num_tokens = 0  # of scored trajectories, whole
        self._running = self._done = self._failed = self._turns = 0
        self._calls: Counter[str] = Counter()
        self._sampled = 0
        self._started = self._changed = time.perf_counter()
        self._answer = ""

    def roll(self, roll: Roll, chat: ChatTemplate) -> Roll:
        """Return what rolls out just as `roll` does, and counts."""

        async def rolled(attempt: Attempt) -> Trajectory:
            self._running += 1
            try:
                trajectory = await roll(attempt)
            except Exception:
                self._failed += 1
                raise
            finally:
                self._running -= 1
            self._add(trajectory, chat)
            return trajectory

        return rolled

    def score(self, score: Score) -> Score:
        """Return what scores just as `score` does, and counts."""

        async def scored(trajectory: Trajectory) -> ScoredTrajectory:
            answer = await score(trajectory)
            self.num_tokens += trajectory.num_tokens
            self._changed = time.perf_counter()
            return answer

        return scored

    def snapshot(self) -> dict[str, Any]:
        seconds = max(self._changed - self._started, 1e-9)
        return {
            "running": max(0, self._running),
            "done": self._done,
            "failed": self._failed,
            "turns": self._turns,
            "calls": dict(self._calls),
            "student_tokens_per_s": self._sampled / seconds,
            "teacher_tokens_per_s": self.num_tokens / seconds,
            "answer": self._answer,
        }

    def _add(self, trajectory: Trajectory, chat: ChatTemplate) -> None:
        self._done += 1
        self._turns += len(trajectory.turns)
        self._calls.update(call.outcome.value for call in trajectory.tool_calls)
        self._sampled += trajectory.num_actions
        self._changed = time.perf_counter()
        said = turn_text(trajectory, trajectory.turns[-1], chat)
        words = (split_thinking(said)[1] or said).split()
        self._answer = inert(" ".join(words)[:MAX_ANSWER_CHARS])
