import asyncio
from collections.abc import Callable

import pytest
from processes import PATIENCE_S
from scored import make_scored

from rnow.errors import (
    DeadlineError,
    EngineError,
    PublicationError,
    RnowError,
    RolloutError,
    TeacherError,
    TemplateError,
)
from rnow.records import Prompt, RolloutId, Trajectory
from rnow.rollout.attempt import Attempt
from rnow.rollout.many import Losses, roll_many

ATTEMPTS = [
    Attempt(
        prompt=Prompt(index=index, line=index + 1, messages=(), tools=None),
        id=RolloutId(0, index, 0),
        policy_version=0,
    )
    for index in (3, 1, 2)
]


async def name_of(attempt: Attempt, trajectory: Trajectory) -> str:
    assert trajectory.id == attempt.id
    return str(attempt.id)


def nothing_lost(attempt: Attempt, error: RnowError) -> None:
    raise AssertionError(error)


def failing(*errors: RnowError) -> Callable[[Attempt], asyncio.Future[Trajectory]]:
    """Return what fails with each of `errors` in turn, whoever asks, and then ends well."""
    left = list(errors)

    async def roll(attempt: Attempt) -> Trajectory:
        if left:
            raise left.pop(0)
        return make_scored(attempt.id).trajectory

    return lambda attempt: asyncio.ensure_future(roll(attempt))


async def test_results_are_in_the_order_of_attempts_and_so_many_roll_at_once() -> None:
    rolling, most = 0, 0

    async def roll(attempt: Attempt) -> Trajectory:
        nonlocal rolling, most
        rolling += 1
        most = max(most, rolling)
        await asyncio.sleep(0.002 * attempt.prompt.index)  # the first ends last
        rolling -= 1
        return make_scored(attempt.id).trajectory

    found = await roll_many(ATTEMPTS, roll, name_of, lose=nothing_lost, concurrency=2)
    assert (found, most) == (["0.3.0", "0.1.0", "0.2.0"], 2)


async def test_the_first_request_goes_out_before_the_next_rollout_begins() -> None:
    said: list[str] = []

    async def request(attempt: Attempt) -> Trajectory:
        said.append(f"{attempt.id} sent")
        return make_scored(attempt.id).trajectory

    async def roll(attempt: Attempt) -> Trajectory:
        said.append(f"{attempt.id} begun")
        return await asyncio.create_task(request(attempt))

    await roll_many(ATTEMPTS, roll, name_of, lose=nothing_lost, concurrency=3)
    assert said == [f"0.{index}.0 {word}" for index in (3, 1, 2) for word in ("begun", "sent")]


async def test_what_then_does_takes_no_slot() -> None:
    ended = 0
    all_ended = asyncio.Event()

    async def wait_for_all(attempt: Attempt, trajectory: Trajectory) -> None:
        nonlocal ended
        ended += 1
        if ended == len(ATTEMPTS):
            all_ended.set()
        await asyncio.wait_for(all_ended.wait(), PATIENCE_S)

    await roll_many(ATTEMPTS, failing(), wait_for_all, lose=nothing_lost, concurrency=1)
    assert ended == 3


@pytest.mark.parametrize("error", [RolloutError, EngineError, DeadlineError, TemplateError])
async def test_an_attempt_is_tried_again_once_and_lost_at_the_second_failure(
    error: type[RnowError],
) -> None:
    losses = Losses(num_wanted=3, max_share=1.0, refuse=lambda losses: RolloutError("too many"))
    once = await roll_many(
        ATTEMPTS, failing(error("no")), name_of, lose=nothing_lost, concurrency=1
    )
    assert once == ["0.3.0", "0.1.0", "0.2.0"]
    twice = await roll_many(
        ATTEMPTS, failing(error("no"), error("never")), name_of, lose=losses.add, concurrency=1
    )
    assert twice == ["0.1.0", "0.2.0"]
    assert (dict(losses.by_type), losses.reasons) == ({error: 1}, {"never": 1})


async def test_an_attempt_that_could_not_be_scored_is_lost_and_not_rolled_out_again() -> None:
    lost: list[tuple[str, str]] = []

    async def score(attempt: Attempt, trajectory: Trajectory) -> str:
        if attempt.prompt.index == 1:
            raise TeacherError("no answer")
        return await name_of(attempt, trajectory)

    def lose(attempt: Attempt, error: RnowError) -> None:
        lost.append((str(attempt.id), str(error)))

    found = await roll_many(ATTEMPTS, failing(), score, lose=lose, concurrency=3)
    assert (found, lost) == (["0.3.0", "0.2.0"], [("0.1.0", "no answer")])


async def test_what_concerns_every_rollout_goes_up_as_it_is() -> None:
    with pytest.raises(PublicationError, match="another version"):
        await roll_many(
            ATTEMPTS,
            failing(PublicationError("another version")),
            name_of,
            lose=nothing_lost,
            concurrency=1,
        )


def test_one_loss_too_many_raises_and_reasons_stand_commonest_first() -> None:
    losses = Losses(
        num_wanted=8, max_share=0.5, refuse=lambda losses: RolloutError(f"lost {losses.num}")
    )
    for reason in ("slow", "gone", "late", "gone"):
        losses.add(ATTEMPTS[0], EngineError(reason))
    assert list(losses.reasons.items()) == [("gone", 2), ("late", 1), ("slow", 1)]
    with pytest.raises(RolloutError, match="lost 5"):
        losses.add(ATTEMPTS[0], TeacherError("slow"))
