import asyncio

import pytest

from rnow.deadline import within
from rnow.errors import DeadlineError


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
