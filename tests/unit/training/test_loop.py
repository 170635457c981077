"""The order of the loop, and how it ends, over a student, a teacher and a trainer of tests."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from overlap_lab import GROUP, PROBE, Lab, others
from processes import PATIENCE_S

from rnow.errors import BadNumbersError, EngineError, Interrupted, RolloutError
from rnow.records import Batch
from rnow.rollout.attempt import Attempt
from rnow.runtime.signals import StopRequest

LIMIT_S = PATIENCE_S  # of what would otherwise wait for ever


def steps_of(lab: Lab) -> list[dict[str, float]]:
    return lab.run.read_metrics()


def when_rollouts_end(step: int, event: threading.Event) -> None:
    named = {task.get_name(): task for task in asyncio.all_tasks()}
    named[f"rollouts of step {step}"].add_done_callback(lambda _: event.set())


async def test_without_lag_everything_has_its_turn(tmp_path: Path) -> None:
    lab = Lab(tmp_path, lag=0, num_steps=2)

    async def on_roll(attempt: Attempt) -> None:
        lab.log.append(f"roll {attempt.id.step} on {attempt.policy_version}")

    lab.on_roll = on_roll
    await lab.train()
    assert lab.log == [
        *("load 0", "evaluate 0", "roll 0 on 0", "roll 0 on 0", "update 0", "save 1"),
        *("load 1", "unload 0", "evaluate 1", "roll 1 on 1", "roll 1 on 1", "update 1", "save 2"),
        *("load 2", "unload 1", "evaluate 2"),
    ]
    assert [line["rollout/overlapped_s"] for line in steps_of(lab)] == [0.0, 0.0]


async def test_with_lag_a_step_rolls_out_while_the_one_before_is_learned_from(
    tmp_path: Path,
) -> None:
    lab = Lab(tmp_path, num_steps=4)
    versions: list[tuple[int, int]] = []
    whole = {step: threading.Event() for step in range(5)}
    whole[4].set()  # there is no such step

    async def on_roll(attempt: Attempt) -> None:
        versions.append((attempt.id.step, attempt.policy_version))
        if len([one for one in versions if one[0] == attempt.id.step]) == GROUP:
            whole[attempt.id.step].set()

    def on_update(batch: Batch) -> None:
        # Would wait in vain if the next step's rollouts did not go on meanwhile.
        assert whole[batch.step + 1].wait(LIMIT_S)

    lab.on_roll, lab.on_update = on_roll, on_update
    await lab.train()
    assert versions == [(0, 0), (0, 0), (1, 0), (1, 0), (2, 1), (2, 1), (3, 2), (3, 2)]
    assert lab.log == [
        *("load 0", "evaluate 0", "update 0", "save 1"),
        *("load 1", "evaluate 1", "update 1", "save 2"),
        *("load 2", "unload 0", "evaluate 2", "update 2", "save 3"),
        *("load 3", "unload 1", "evaluate 3", "update 3", "save 4"),
        *("load 4", "unload 2", "evaluate 4"),
    ]
    assert [line["step"] for line in steps_of(lab)] == [0, 1, 2, 3]
    assert not others()


async def test_the_next_version_is_published_while_rollouts_are_on_the_one_before(
    tmp_path: Path,
) -> None:
    lab = Lab(tmp_path, num_steps=2)

    async def on_roll(attempt: Attempt) -> None:
        while attempt.id.step == 1 and "load 1" not in lab.log:
            await asyncio.sleep(0.001)

    lab.on_roll = on_roll
    await asyncio.wait_for(lab.train(), LIMIT_S)
    assert lab.student.policies.keys() == {1, 2}


async def test_a_step_rolls_out_while_the_one_before_is_scored(tmp_path: Path) -> None:
    lab = Lab(tmp_path, num_steps=3)
    begun = {step: asyncio.Event() for step in range(4)}
    begun[3].set()  # there is no such step

    async def on_roll(attempt: Attempt) -> None:
        begun[attempt.id.step].set()
        assert max(lab.num_scored, default=-1) >= attempt.id.step - 2, "the one before it is whole"

    async def on_score(num_tokens: int) -> None:
        if begun[0].is_set() and num_tokens > len(PROBE):  # of no preflight, and no health check
            # Would wait in vain if the next step's rollouts did not begin meanwhile.
            await asyncio.wait_for(begun[lab.weights + 1].wait(), LIMIT_S)

    lab.on_roll, lab.on_score = on_roll, on_score
    await lab.train()
    assert lab.num_scored == {0: GROUP, 1: GROUP, 2: GROUP}
    assert all(line["rollout/overlapped_s"] > 0 for line in steps_of(lab)[1:])
    assert not others()


async def test_a_run_that_goes_on_publishes_the_weights_before_its_last_update_first(
    tmp_path: Path,
) -> None:
    lab = Lab(tmp_path, num_steps=4, first_step=3)
    await lab.train()
    assert lab.log == [
        *("swap", "load 2", "swap", "load 3", "evaluate 3", "update 3", "save 4"),
        *("load 4", "unload 2", "evaluate 4"),
    ]


async def test_a_run_that_has_all_its_steps_only_evaluates(tmp_path: Path) -> None:
    lab = Lab(tmp_path, num_steps=4, first_step=4)
    await lab.train()
    assert lab.log == ["load 4", "evaluate 4"]


def failing_at_step_1(failed: threading.Event) -> Callable[[Attempt], Awaitable[None]]:
    """Fail each rollout of step 1; `failed` is set when all of them have."""

    async def on_roll(attempt: Attempt) -> None:
        if attempt.id.step == 1:
            when_rollouts_end(1, failed)
            raise EngineError("the server is gone")

    return on_roll


async def test_rollouts_that_fail_beside_an_update_let_it_end_and_be_saved(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    failed = threading.Event()

    def on_update(batch: Batch) -> None:
        assert failed.wait(LIMIT_S)

    lab.on_roll, lab.on_update = failing_at_step_1(failed), on_update
    with pytest.raises(RolloutError, match=r"step 1 lost 1 of 2 trajectories(.|\n)*server is gone"):
        await lab.train()
    assert lab.log == ["load 0", "evaluate 0", "update 0", "save 1"]
    assert [line["step"] for line in steps_of(lab)] == [0]
    assert not others()


async def test_an_update_that_fails_ends_the_rollouts_beside_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    begun = threading.Event()

    async def on_roll(attempt: Attempt) -> None:
        if attempt.id.step == 1:
            begun.set()
            await asyncio.sleep(3600)

    def on_update(batch: Batch) -> None:
        assert begun.wait(LIMIT_S)
        raise BadNumbersError("the loss is nan")

    lab.on_roll, lab.on_update = on_roll, on_update
    with pytest.raises(BadNumbersError, match="the loss is nan"):
        await asyncio.wait_for(lab.train(), LIMIT_S)
    assert (lab.rolling, lab.log) == (0, ["load 0", "evaluate 0", "update 0"])
    assert not others()
    assert "had failed" not in lab.said.getvalue()


async def test_of_two_that_fail_the_second_is_told_too(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    failed = threading.Event()

    def on_update(batch: Batch) -> None:
        assert failed.wait(LIMIT_S)
        raise BadNumbersError("the loss is nan")

    lab.on_roll, lab.on_update = failing_at_step_1(failed), on_update
    with pytest.raises(BadNumbersError, match="the loss is nan"):
        await lab.train()
    assert lab.said.getvalue() == (
        "the rollouts of the next step had failed too: step 1 lost 1 of 2 trajectories, more than "
        "trainer.max_dropped (0) allows. Most common reasons:\n  1 ×  the server is gone\n"
    )


async def test_a_stop_ends_rollouts_at_once_and_the_update_beside_them_is_saved(
    tmp_path: Path,
) -> None:
    lab = Lab(tmp_path)
    asked = threading.Event()
    stops: list[StopRequest] = []

    async def on_roll(attempt: Attempt) -> None:
        if attempt.id.step == 1:
            while "update 0" not in lab.log:  # it begins before: beside scores of step 0
                await asyncio.sleep(0.001)
            stops[0].ask("q")
            try:
                await asyncio.sleep(3600)
            finally:
                asked.set()

    def on_update(batch: Batch) -> None:
        assert asked.wait(LIMIT_S)  # the rollouts have ended, and this goes on

    lab.on_roll, lab.on_update = on_roll, on_update
    with pytest.raises(Interrupted):
        await asyncio.wait_for(lab.train(stop_at=stops.append), LIMIT_S)
    assert lab.log == ["load 0", "evaluate 0", "update 0", "save 1"]
    assert (lab.rolling, lab.said.getvalue().count("step 1/3")) == (0, 1)
    assert not others()


async def test_a_stop_while_one_step_is_scored_and_the_next_rolls_out_ends_both(
    tmp_path: Path,
) -> None:
    lab = Lab(tmp_path)
    stops: list[StopRequest] = []

    async def on_roll(attempt: Attempt) -> None:
        if attempt.id.step == 1:
            stops[0].ask("q")
            await asyncio.sleep(3600)

    async def on_score(num_tokens: int) -> None:
        if "load 0" in lab.log and num_tokens > len(PROBE):  # after the preflight
            await asyncio.sleep(3600)

    lab.on_roll, lab.on_score = on_roll, on_score
    with pytest.raises(Interrupted):
        await asyncio.wait_for(lab.train(stop_at=stops.append), LIMIT_S)
    assert (lab.rolling, lab.num_scored) == (0, {})
    assert lab.log == ["load 0", "evaluate 0"]
    assert not others()


async def test_a_stop_while_the_trainer_waits_for_rollouts_ends_them(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    stops: list[StopRequest] = []

    async def on_roll(attempt: Attempt) -> None:
        if attempt.id.step == 1:
            while "load 1" not in lab.log:
                await asyncio.sleep(0.001)
            stops[0].ask("q")
            await asyncio.sleep(3600)

    lab.on_roll = on_roll
    with pytest.raises(Interrupted):
        await asyncio.wait_for(lab.train(stop_at=stops.append), LIMIT_S)
    assert lab.log == ["load 0", "evaluate 0", "update 0", "save 1", "load 1"]
    assert not others()
