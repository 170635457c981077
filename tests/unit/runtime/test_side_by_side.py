import asyncio

import pytest
from tidying import Tidying

from rnow.errors import DeadlineError, EngineError
from rnow.runtime.deadline import within
from rnow.runtime.side_by_side import each_to_its_end, side_by_side, until_ended


async def test_results_stand_in_the_order_of_the_work_and_not_of_its_ends() -> None:
    second_ended = asyncio.Event()

    async def first() -> str:
        await second_ended.wait()
        return "first"

    async def second() -> str:
        second_ended.set()
        return "second"

    assert await side_by_side(first(), second()) == ["first", "second"]
    assert await side_by_side() == []


async def test_one_error_goes_up_as_it_is_once_the_others_have_ended() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("forever")

    async def broken() -> None:
        raise EngineError("no answer")

    with pytest.raises(EngineError, match="no answer"):
        await side_by_side(forever(), broken(), forever())
    assert ended == ["forever", "forever"]


async def test_what_is_cancelled_tidies_up_however_often_who_waits_for_it_is_cancelled() -> None:
    tidying = Tidying()

    async def waits() -> None:
        task = asyncio.create_task(tidying.work())
        await asyncio.sleep(0)
        task.cancel()
        await until_ended(task)

    waiting = asyncio.create_task(waits())
    await tidying.begun.wait()
    for _ in range(2):
        waiting.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert tidying.ended


async def test_who_is_cancelled_while_others_tidy_up_after_an_error_is_cancelled() -> None:
    tidying = Tidying()

    async def breaks() -> None:
        raise EngineError("no answer")

    task = asyncio.create_task(side_by_side(tidying.work(), breaks()))
    await tidying.begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert tidying.ended


async def test_what_tidies_up_ends_also_where_another_fails() -> None:
    ended: list[str] = []

    async def breaks() -> None:
        raise EngineError("no answer")

    async def slow() -> None:
        await asyncio.sleep(0.02)
        ended.append("slow")

    with pytest.raises(EngineError, match="no answer"):
        await each_to_its_end(breaks(), slow())
    assert ended == ["slow"]


async def test_what_tidies_up_ends_also_where_who_waits_for_it_is_cancelled() -> None:
    ended: list[str] = []

    async def slow() -> None:
        await asyncio.sleep(0.02)
        ended.append("slow")

    waiting = asyncio.create_task(each_to_its_end(slow(), slow()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended == ["slow", "slow"]


async def test_a_deadline_around_work_that_failed_is_a_deadline() -> None:
    async def breaks() -> None:
        raise EngineError("no answer")

    async def a_whole() -> None:
        async with within(0.01, "the whole"):
            with pytest.raises(EngineError):
                await side_by_side(breaks(), asyncio.sleep(60))
            await asyncio.sleep(60)

    with pytest.raises(DeadlineError):
        await a_whole()
