import asyncio
import logging
import time

import pytest

from rnow.errors import DeadlineError
from rnow.runtime.deadline import stacks, waits, within


async def test_a_breach_says_what_waited_and_how_long() -> None:
    with pytest.raises(DeadlineError) as caught:
        async with within(0.01, "teacher.score of trajectory 37"):
            await asyncio.sleep(5)
    assert str(caught.value) == "teacher.score of trajectory 37 has waited 0.01 s"
    assert caught.value.exit_code == 3


async def test_what_ends_in_time_is_left_alone() -> None:
    async with within(5, "nothing"):
        await asyncio.sleep(0)


async def test_a_timeout_of_the_block_itself_keeps_its_name() -> None:
    with pytest.raises(TimeoutError, match="mine"):
        async with within(5, "theirs"):
            raise TimeoutError("mine")


async def test_what_is_waited_for_is_known_while_it_lasts() -> None:
    async with within(5, "engine.sample of session 3/5/0"), within(60, "teacher.score"):
        now = [(wait.what, wait.limit_s) for wait in waits()]
        assert now == [("engine.sample of session 3/5/0", 5), ("teacher.score", 60)]
        assert all(0 <= wait.waited_s < 5 for wait in waits())
    assert waits() == ()


async def test_stacks_show_every_thread_and_count_the_tasks_at_one_place() -> None:
    async def stand_here() -> None:
        await asyncio.sleep(5)

    tasks = [asyncio.create_task(stand_here()) for _ in range(12)]
    sleeper = asyncio.create_task(asyncio.to_thread(time.sleep, 0.2))
    await asyncio.sleep(0.05)
    text = stacks()
    for task in tasks:
        task.cancel()
    await sleeper
    assert "12 × task at:" in text
    assert "in stand_here" in text
    assert "thread MainThread at:" in text
    assert "thread asyncio_0 at:" in text


async def test_a_breach_is_logged_with_the_stacks_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, logger="rnow"):
        for what in ("one", "other"):
            with pytest.raises(DeadlineError):
                async with within(0.01, what):
                    await asyncio.sleep(5)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[-1] == "other has waited 0.01 s (stacks: above)"
    assert lines[-2].startswith("one has waited 0.01 s")
