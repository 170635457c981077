import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import PATIENCE_S
from scored import make_scored

from rnow.errors import EngineError, RolloutError, TeacherError, ToolDefinitionError
from rnow.records import Prompt, RolloutId, ScoredTrajectory, Trajectory
from rnow.rollout.attempt import Attempt
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import Journal, read_journal
from rnow.training.collect import Collected, Collector
from rnow.training.looked_into import Verdict, no_verdict
from rnow.training.metrics import step_metrics

PROMPTS = [Prompt(index=index, line=index + 1, messages=(), tools=None) for index in (4, 2)]


class World:
    """Counts rollouts and scores; fails where it is told to."""

    def __init__(self) -> None:
        self.rolled: list[RolloutId] = []
        self.roll_faults: dict[RolloutId, int] = {}
        self.score_faults: set[RolloutId] = set()

    async def roll(self, attempt: Attempt) -> Trajectory:
        id = attempt.id
        self.rolled.append(id)
        # Later ids end earlier, so that arrival is not the order of the ids.
        await asyncio.sleep(0.001 * (10 - 4 * id.rollout - attempt.prompt.index))
        if self.roll_faults.get(id, 0) > 0:
            self.roll_faults[id] -= 1
            raise EngineError("server gone")
        return make_scored(attempt.id, policy_version=attempt.policy_version).trajectory

    async def score(self, trajectory: Trajectory) -> ScoredTrajectory:
        if trajectory.id in self.score_faults:
            raise TeacherError("no answer")
        return make_scored(trajectory.id, policy_version=trajectory.id.step)


async def collect(
    world: World,
    folder: Path,
    *,
    max_dropped: float = 0.3,
    on_scored: Callable[[], None] = lambda: None,
) -> Collected:
    collector = Collector(
        world.roll,
        world.score,
        run=RunDirectory(folder),
        concurrency=3,
        max_dropped=max_dropped,
    )
    return await collector.collect(3, PROMPTS, group_size=2, on_scored=on_scored)


async def test_a_batch_is_in_the_order_of_ids_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    seen: list[None] = []
    collected = await collect(World(), tmp_path, on_scored=lambda: seen.append(None))
    ids = [item.trajectory.id for item in collected.batch.scored]
    assert ids == [RolloutId(3, 2, 0), RolloutId(3, 2, 1), RolloutId(3, 4, 0), RolloutId(3, 4, 1)]
    assert len(seen) == 4
    journaled = read_journal(tmp_path / "trajectories" / "000003.jsonl", policy_version=3)
    assert [item.trajectory.id for item in journaled] == ids


async def test_a_trajectory_is_scored_while_others_still_roll_out(tmp_path: Path) -> None:
    first_is_scored = asyncio.Event()

    class Streaming(World):
        async def roll(self, attempt: Attempt) -> Trajectory:
            if attempt.id != RolloutId(3, 2, 0):
                # Ends only once another trajectory has been scored.
                await asyncio.wait_for(first_is_scored.wait(), PATIENCE_S)
            return make_scored(attempt.id, policy_version=attempt.policy_version).trajectory

        async def score(self, trajectory: Trajectory) -> ScoredTrajectory:
            first_is_scored.set()
            return await super().score(trajectory)

    collected = await collect(Streaming(), tmp_path)
    assert len(collected.batch.scored) == 4


async def test_a_slow_teacher_holds_rollouts_back_and_not_their_trajectories(
    tmp_path: Path,
) -> None:
    begun = scored = most_unscored = 0
    nothing_moves = asyncio.Event()

    class SlowTeacher(World):
        async def roll(self, attempt: Attempt) -> Trajectory:
            nonlocal begun, most_unscored
            begun += 1
            most_unscored = max(most_unscored, begun - scored)
            return make_scored(attempt.id, policy_version=attempt.policy_version).trajectory

        async def score(self, trajectory: Trajectory) -> ScoredTrajectory:
            nonlocal scored
            if scored == 0:
                # Not before all that may begin without it has begun.
                while begun < 5:
                    await asyncio.sleep(0)
                for _ in range(100):
                    await asyncio.sleep(0)
                nothing_moves.set()
            await nothing_moves.wait()
            await asyncio.sleep(0)
            scored += 1
            return await super().score(trajectory)

    world = SlowTeacher()
    collector = Collector(
        world.roll,
        world.score,
        run=RunDirectory(tmp_path),
        concurrency=3,
        max_dropped=0.0,
        max_waiting=2,
    )
    collected = await collector.collect(3, PROMPTS, group_size=20, on_scored=lambda: None)
    assert len(collected.batch.scored) == begun == scored == 40
    assert most_unscored == 5


async def test_a_step_that_lags_is_sampled_from_the_version_before(tmp_path: Path) -> None:
    world = World()
    collector = Collector(
        world.roll,
        world.score,
        run=RunDirectory(tmp_path),
        concurrency=3,
        max_dropped=0.0,
        max_lag=1,
    )
    assert [collector.sampled_from(step) for step in range(4)] == [0, 0, 1, 2]
    path = tmp_path / "trajectories" / "000003.jsonl"
    journal = Journal(path)
    for version, rollout in ((3, 0), (2, 1)):  # only the second is of the version that counts
        journal.append(make_scored(RolloutId(3, 2, rollout), policy_version=version))
    journal.close()
    collected = await collector.collect(3, PROMPTS, group_size=2, on_scored=lambda: None)
    assert collected.num_reused == 1
    assert RolloutId(3, 2, 1) not in world.rolled
    assert len(world.rolled) == 3


async def test_what_the_journal_holds_is_not_rolled_out_again(tmp_path: Path) -> None:
    await collect(World(), tmp_path)
    path = tmp_path / "trajectories" / "000003.jsonl"
    lines = path.read_text().split("\n")
    path.write_text("\n".join(lines[:3]) + "\n")
    kept = {item.trajectory.id for item in read_journal(path)}
    world = World()
    collected = await collect(world, tmp_path)
    assert collected.num_reused == 3
    assert len(collected.batch.scored) == 4
    assert not kept & set(world.rolled)
    assert len(world.rolled) == 1


async def test_a_journal_of_other_prompts_is_left_alone(tmp_path: Path) -> None:
    await collect(World(), tmp_path)
    collector = Collector(
        World().roll, World().score, run=RunDirectory(tmp_path), concurrency=3, max_dropped=0.0
    )
    prompts = [Prompt(index=index, line=index + 1, messages=(), tools=None) for index in (4, 5)]
    collected = await collector.collect(3, prompts, group_size=2, on_scored=lambda: None)
    ids = [item.trajectory.id for item in collected.batch.scored]
    assert ids == [RolloutId(3, 4, 0), RolloutId(3, 4, 1), RolloutId(3, 5, 0), RolloutId(3, 5, 1)]
    assert collected.num_reused == 2


async def test_a_rollout_that_fails_once_is_repeated(tmp_path: Path) -> None:
    world = World()
    world.roll_faults[RolloutId(3, 2, 1)] = 1
    collected = await collect(world, tmp_path)
    assert len(collected.batch.scored) == 4
    assert collected.num_dropped_rollouts == 0


async def test_what_keeps_failing_is_dropped_and_counted(tmp_path: Path) -> None:
    world = World()
    world.score_faults.add(RolloutId(3, 4, 0))
    collected = await collect(world, tmp_path)
    assert len(collected.batch.scored) == 3
    metrics = step_metrics(collected)
    assert metrics["teacher/dropped"] == 1
    assert metrics["rollout/dropped"] == 0
    assert metrics["rollout/trajectories"] == metrics["teacher/scored"] == 3


async def test_too_many_drops_stop_the_run_with_the_reasons(tmp_path: Path) -> None:
    world = World()
    world.score_faults.add(RolloutId(3, 4, 0))
    world.roll_faults[RolloutId(3, 2, 1)] = 2
    with pytest.raises(RolloutError) as caught:
        await collect(world, tmp_path)
    message = str(caught.value)
    assert message.splitlines()[0] == (
        "step 3 lost 2 of 4 trajectories, more than trainer.max_dropped (0.3) allows. "
        "Most common reasons:"
    )
    assert sorted(message.splitlines()[1:]) == ["  1 ×  no answer", "  1 ×  server gone"]


async def test_a_step_ends_as_soon_as_too_much_of_it_is_lost(tmp_path: Path) -> None:
    world = World()

    async def unreachable(trajectory: Trajectory) -> ScoredTrajectory:
        if trajectory.id.rollout == 0:
            await asyncio.sleep(10 * PATIENCE_S)
        raise TeacherError("no answer")

    collector = Collector(
        world.roll, unreachable, run=RunDirectory(tmp_path), concurrency=4, max_dropped=0.3
    )
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(RolloutError, match="step 3 lost 2 of 4 trajectories"):
            await collector.collect(3, PROMPTS, group_size=2, on_scored=lambda: None)


async def test_what_concerns_every_rollout_goes_up_as_it_is(tmp_path: Path) -> None:
    async def roll(attempt: Attempt) -> Trajectory:
        raise ToolDefinitionError("tools.py: its tools are no longer those of this run")

    collector = Collector(
        roll, World().score, run=RunDirectory(tmp_path), concurrency=3, max_dropped=1.0
    )
    with pytest.raises(ToolDefinitionError, match="its tools are no longer"):
        await collector.collect(3, PROMPTS, group_size=2, on_scored=lambda: None)


async def test_a_full_disk_goes_up_as_it_is(tmp_path: Path) -> None:
    class Full(World):
        async def score(self, trajectory: Trajectory) -> ScoredTrajectory:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left on device"):
        await collect(Full(), tmp_path)


async def test_a_step_without_a_trajectory_stops_the_run_whatever_is_allowed(
    tmp_path: Path,
) -> None:
    world = World()
    world.score_faults.update(
        RolloutId(3, prompt, rollout) for prompt in (2, 4) for rollout in (0, 1)
    )
    with pytest.raises(RolloutError, match="step 3 lost 4 of 4 trajectories"):
        await collect(world, tmp_path, max_dropped=1.0)


async def test_a_bug_is_not_a_dropped_trajectory(tmp_path: Path) -> None:
    world = World()

    async def broken(trajectory: Trajectory) -> ScoredTrajectory:
        raise ZeroDivisionError

    collector = Collector(
        world.roll, broken, run=RunDirectory(tmp_path), concurrency=3, max_dropped=1.0
    )
    with pytest.raises(ZeroDivisionError):
        await collector.collect(3, PROMPTS, group_size=2, on_scored=lambda: None)


async def test_verdicts_are_kept_and_those_of_the_journal_count_too(tmp_path: Path) -> None:
    async def verdict(prompt: Prompt, trajectory: Trajectory) -> bool | None:
        return None if trajectory.id.rollout else prompt.index == 4

    def collector(verdict: Verdict) -> Collector:
        world, run = World(), RunDirectory(tmp_path)
        return Collector(
            world.roll, world.score, run=run, concurrency=3, max_dropped=0.3, verdict=verdict
        )

    for each in (verdict, no_verdict):  # the second takes all from the journal
        collected = await collector(each).collect(3, PROMPTS, group_size=2, on_scored=lambda: None)
        assert collected.verdicts == (False, None, True, None)
        found = step_metrics(collected)
        assert (found["rollout/graded"], found["rollout/right"]) == (2, 0.5)


async def test_without_a_verdict_there_is_no_share(tmp_path: Path) -> None:
    found = step_metrics(await collect(World(), tmp_path))
    assert found["rollout/graded"] == 0
    assert "rollout/right" not in found
