"""All rollouts of one step, each scored by the teacher the moment it ends.

    prompt ─▶ rollout ─▶ score ─▶ journal     × batch_size × group_size, side by side
                 │         │
                 └─ fails twice ─▶ dropped and counted; too many ─▶ the run stops

A bad rollout is data about the run, not a crash: but it never becomes a number in the batch.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from rnow.errors import (
    DeadlineError,
    EngineError,
    RnowError,
    RolloutError,
    TeacherError,
    TemplateError,
)
from rnow.records import Batch, Prompt, RolloutId, ScoredTrajectory, Trajectory
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import Journal, read_journal

NUM_ATTEMPTS = 2

Roll = Callable[[Prompt, RolloutId, int], Awaitable[Trajectory]]
Score = Callable[[Trajectory], Awaitable[ScoredTrajectory]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """A step's batch and what it took to get it."""

    batch: Batch
    num_reused: int  # taken from the journal of an interrupted attempt at this step
    num_dropped_rollouts: int
    num_dropped_scores: int
    rollout_s: float  # until the last rollout ended
    teacher_wait_s: float  # from then until the last score came


@dataclass(slots=True)
class _Tally:
    """What happened while a step was collected; lives for one step."""

    step: int
    total: int  # trajectories of a whole step
    scored: list[ScoredTrajectory] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    dropped_rollouts: int = 0
    dropped_scores: int = 0
    last_rollout_at: float = 0.0

    @property
    def lost(self) -> int:
        return self.dropped_rollouts + self.dropped_scores


class Collector:
    """Runs `roll` and `score` for every trajectory of a step, at most `concurrency` at a time."""

    def __init__(
        self, roll: Roll, score: Score, *, run: RunDirectory, concurrency: int, max_dropped: float
    ) -> None:
        self._roll = roll
        self._score = score
        self._run = run
        self._slots = asyncio.Semaphore(concurrency)
        self._max_dropped = max_dropped

    async def collect(
        self,
        step: int,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        on_scored: Callable[[], None],
    ) -> Collected:
        """Return the step's batch; raises RolloutError once more than `max_dropped` of it is lost.

        What is wrong with more than a trajectory (a tools.py that changed during the run) goes up
        as it is.
        """
        started = time.perf_counter()
        path = self._run.trajectories(step)
        prompt_of = {
            RolloutId(step, prompt.index, rollout): prompt
            for prompt in prompts
            for rollout in range(group_size)
        }
        tally = _Tally(step=step, total=len(prompt_of), last_rollout_at=started)
        # Prompts may have moved in their file since the step was interrupted.
        journaled = read_journal(path, policy_version=step)
        tally.scored.extend(item for item in journaled if item.trajectory.id in prompt_of)
        reused = {item.trajectory.id for item in tally.scored}
        for _ in reused:
            on_scored()
        journal = Journal(path)
        try:
            async with asyncio.TaskGroup() as group:
                for id, prompt in prompt_of.items():
                    if id not in reused:
                        group.create_task(self._one(prompt, id, tally, journal, on_scored))
        except* (RnowError, OSError) as errors:
            raise errors.exceptions[0] from errors
        finally:
            await asyncio.to_thread(journal.close)  # it syncs, which may take a while
        finished = time.perf_counter()
        if not tally.scored:
            raise self._too_many_lost(tally)
        batch = Batch(
            step=step, scored=tuple(sorted(tally.scored, key=lambda item: item.trajectory.id))
        )
        return Collected(
            batch=batch,
            num_reused=len(reused),
            num_dropped_rollouts=tally.dropped_rollouts,
            num_dropped_scores=tally.dropped_scores,
            rollout_s=tally.last_rollout_at - started,
            teacher_wait_s=finished - tally.last_rollout_at,
        )

    async def _one(
        self,
        prompt: Prompt,
        id: RolloutId,
        tally: _Tally,
        journal: Journal,
        on_scored: Callable[[], None],
    ) -> None:
        async with self._slots:
            trajectory = await self._rolled(prompt, id, tally)
        tally.last_rollout_at = time.perf_counter()
        if trajectory is None:
            return
        try:
            scored = await self._score(trajectory)
        except TeacherError as error:
            tally.dropped_scores += 1
            self._count_reason(tally, error)
            return
        journal.append(scored)
        tally.scored.append(scored)
        on_scored()

    async def _rolled(self, prompt: Prompt, id: RolloutId, tally: _Tally) -> Trajectory | None:
        for attempt in range(NUM_ATTEMPTS):
            try:
                return await self._roll(prompt, id, id.step)
            except (RolloutError, EngineError, DeadlineError, TemplateError) as error:
                if attempt == NUM_ATTEMPTS - 1:
                    tally.dropped_rollouts += 1
                    self._count_reason(tally, error)
        return None

    def _count_reason(self, tally: _Tally, error: RnowError) -> None:
        tally.reasons[str(error)] += 1
        if tally.lost > self._max_dropped * tally.total:
            # At once: behind a teacher that is gone the others would each wait out their retries.
            raise self._too_many_lost(tally)

    def _too_many_lost(self, tally: _Tally) -> RolloutError:
        reasons = "".join(
            f"\n  {count} ×  {reason}" for reason, count in tally.reasons.most_common(3)
        )
        return RolloutError(
            f"step {tally.step} lost {tally.lost} of {tally.total} trajectories, more than "
            f"trainer.max_dropped ({self._max_dropped:g}) allows. Most common reasons:{reasons}"
        )
