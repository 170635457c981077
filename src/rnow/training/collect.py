"""All rollouts of one step, each scored by the teacher the moment it ends.

prompt ─▶ rollout ─▶ score ─▶ journal     × batch_size × group_size, side by side
             │         │
             └─ fails twice ─▶ dropped and counted; too many ─▶ the run stops
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rnow.errors import RolloutError, TeacherError
from rnow.records import Batch, Prompt, RolloutId, ScoredTrajectory, Trajectory
from rnow.rollout.attempt import Attempt
from rnow.rollout.many import MAX_WAITING, Losses, Roll, roll_many
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import Journal, read_graded
from rnow.training.looked_into import Verdict, no_verdict

NUM_SHOWN_REASONS = 3

Score = Callable[[Trajectory], Awaitable[ScoredTrajectory]]
Graded = tuple[ScoredTrajectory, bool | None]  # whether the answer was right; None: not graded


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """A step's batch and what it took to get it."""

    batch: Batch
    num_reused: int  # taken from the journal of an interrupted attempt at this step
    num_dropped_rollouts: int
    num_dropped_scores: int
    verdicts: tuple[bool | None, ...]  # whether each of the batch was right; None: not graded
    num_copied: int  # rollouts that write out what only their entry's metadata holds
    rollout_s: float  # until the last rollout ended
    teacher_wait_s: float  # from then until the last score came
    overlapped_s: float = 0.0  # of both, what the loop did not wait for


@dataclass(frozen=True, slots=True)
class Collector:
    """Makes batches: every trajectory of a step is rolled out and scored."""

    roll: Roll
    score: Score
    run: RunDirectory
    concurrency: int  # rollouts at a time
    max_dropped: float  # share of a step
    max_waiting: int = MAX_WAITING  # trajectories, for the teacher, before no more are begun
    max_lag: int = 0  # updates between a step's weights and those that sample it
    verdict: Verdict = no_verdict
    copies: Callable[[Prompt, Trajectory], bool] = lambda prompt, trajectory: False

    def sampled_from(self, step: int) -> int:
        """Return the policy version that samples a step: all of it, in every attempt at it."""
        return max(0, step - self.max_lag)

    async def collect(
        self,
        step: int,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        on_scored: Callable[[], None],
        on_rolled: Callable[[], None] = lambda: None,
    ) -> Collected:
        """Return the step's batch; raises RolloutError once more than `max_dropped` of it is lost.

        `on_scored` is called for each of the batch, `on_rolled` when only scores are missing. What
        is wrong with more than a trajectory (a tools.py that changed during the run) goes up as it
        is.
        """
        started = time.perf_counter()
        path, version = self.run.trajectories(step), self.sampled_from(step)
        prompt_of = {prompt.index: prompt for prompt in prompts}
        wanted = {
            id: Attempt(prompt=prompt, id=id, policy_version=version)
            for prompt in prompts
            for id in (RolloutId(step, prompt.index, rollout) for rollout in range(group_size))
        }
        refuse = partial(self._too_many_lost, step)
        losses = Losses(num_wanted=len(wanted), max_share=self.max_dropped, refuse=refuse)
        # Prompts may have moved in their file since the step was interrupted.
        journaled = read_graded(path, policy_version=version)
        reused = [pair for pair in journaled if wanted.pop(pair[0].trajectory.id, None) is not None]
        for _ in reused:
            on_scored()
        self.run.check_there()
        journal = Journal(path)
        try:
            new, rolled_at = await self._roll_and_score(
                list(wanted.values()),
                journal,
                losses=losses,
                on_scored=on_scored,
                on_rolled=on_rolled,
            )
        finally:
            await asyncio.to_thread(journal.close)  # it syncs, which may take a while
        finished = time.perf_counter()
        graded = sorted((*reused, *new), key=lambda pair: pair[0].trajectory.id)
        if not graded:
            raise refuse(losses)
        num_dropped_scores = losses.by_type[TeacherError]
        return Collected(
            batch=Batch(step=step, scored=tuple(item for item, _ in graded)),
            num_reused=len(reused),
            num_dropped_rollouts=losses.num - num_dropped_scores,
            num_dropped_scores=num_dropped_scores,
            verdicts=tuple(right for _, right in graded),
            num_copied=sum(
                self.copies(prompt_of[one.trajectory.id.prompt], one.trajectory)
                for one, _ in graded
            ),
            rollout_s=rolled_at - started,
            teacher_wait_s=finished - rolled_at,
        )

    async def _roll_and_score(
        self,
        attempts: Sequence[Attempt],
        journal: Journal,
        *,
        losses: Losses,
        on_scored: Callable[[], None],
        on_rolled: Callable[[], None],
    ) -> tuple[list[Graded], float]:
        """Return what was scored and written down, and when the last rollout ended."""
        rolled_at = time.perf_counter()

        def all_rolled() -> None:
            nonlocal rolled_at
            rolled_at = time.perf_counter()
            on_rolled()

        async def score(attempt: Attempt, trajectory: Trajectory) -> Graded:
            scored = await self.score(trajectory)
            right = await self.verdict(attempt.prompt, trajectory)
            self.run.check_there()
            journal.append(scored, right=right)
            on_scored()
            return scored, right

        scored = await roll_many(
            attempts,
            self.roll,
            score,
            lose=losses.add,
            concurrency=self.concurrency,
            max_waiting=self.max_waiting,
            on_rolled=all_rolled,
        )
        return scored, rolled_at

    def _too_many_lost(self, step: int, losses: Losses) -> RolloutError:
        reasons = "".join(
            f"\n  {count} ×  {reason}"
            for reason, count in list(losses.reasons.items())[:NUM_SHOWN_REASONS]
        )
        return RolloutError(
            f"step {step} lost {losses.num} of {losses.num_wanted} trajectories, more than "
            f"trainer.max_dropped ({self.max_dropped:g}) allows. Most common reasons:{reasons}"
        )
