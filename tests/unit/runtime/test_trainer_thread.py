"""The trainer's thread: one, beside the event loop."""

import asyncio
import threading

import pytest

from rnow.runtime.trainer_thread import in_trainer_thread


async def test_all_work_is_done_in_one_thread_that_is_not_the_event_loops() -> None:
    threads = await asyncio.gather(*(in_trainer_thread(threading.get_ident) for _ in range(20)))
    assert len({*threads}) == 1
    assert threads[0] != threading.get_ident()


async def test_what_the_work_raises_comes_back() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_trainer_thread(lambda number: 1 / number, 0)
    assert await in_trainer_thread(divmod, 7, 2) == (3, 1)
