import asyncio
import os
import signal
import time

import pytest
from tidying import Tidying

from rnow.errors import Interrupted
from rnow.runtime.signals import StopRequest


async def forever(cancelled: list[str]) -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        cancelled.append("cancelled")
        raise


@pytest.mark.parametrize(
    ("number", "reason", "exit_code"),
    [
        (signal.SIGINT, "Ctrl-C", 130),
        (signal.SIGTERM, "SIGTERM", 143),
        (signal.SIGHUP, "SIGHUP", 129),
    ],
)
async def test_a_signal_cuts_rollouts_short(
    number: signal.Signals, reason: str, exit_code: int
) -> None:
    cancelled: list[str] = []
    with StopRequest() as stop:
        asyncio.get_running_loop().call_later(0.01, os.kill, os.getpid(), number)
        with pytest.raises(Interrupted, match=reason) as caught:
            await stop.cut(forever(cancelled))
    assert caught.value.exit_code == exit_code
    assert cancelled == ["cancelled"]


async def test_a_signal_lets_an_update_end_and_is_heard_afterwards() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.to_thread(time.sleep, 0.05)
        with pytest.raises(Interrupted):
            stop.check()


async def test_the_time_limit_ends_a_run_with_exit_code_0() -> None:
    with StopRequest(max_time_s=0.01) as stop:
        with pytest.raises(Interrupted, match=r"trainer\.max_time_s") as caught:
            await stop.cut(forever([]))
        with pytest.raises(Interrupted, match=r"trainer\.max_time_s"):
            stop.check()
    assert caught.value.exit_code == 0


@pytest.mark.parametrize("max_time_s", [0.0, 0.05])  # before the signal, and after it
async def test_one_signal_around_the_time_limit_is_what_stops_a_run(max_time_s: float) -> None:
    with StopRequest(max_time_s=max_time_s) as stop:
        await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.1)
        with pytest.raises(Interrupted, match="Ctrl-C"):
            stop.check()


async def test_work_that_is_not_cut_gives_its_result_or_its_error() -> None:
    async def work() -> int:
        return 7

    async def broken() -> int:
        raise ZeroDivisionError

    with StopRequest(max_time_s=60) as stop:
        assert await stop.cut(work()) == 7
        with pytest.raises(ZeroDivisionError):
            await stop.cut(broken())


async def test_work_is_not_begun_once_a_stop_was_asked_for() -> None:
    begun: list[str] = []
    work = forever(begun)
    with StopRequest(max_time_s=0.0) as stop:
        await asyncio.sleep(0.01)
        with pytest.raises(Interrupted):
            await stop.cut(work)
    # Closed, so that Python does not warn on the terminal that it was never awaited.
    assert work.cr_frame is None
    assert begun == []


async def test_a_terminal_that_hangs_up_twice_asks_once() -> None:
    with StopRequest() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.01)
        with pytest.raises(Interrupted) as caught:
            stop.check()
    assert caught.value.exit_code == 129


async def test_under_nohup_a_run_does_not_hear_that_its_terminal_went() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.01)
            stop.check()
    finally:
        assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN


async def test_work_that_is_cut_tidies_up_also_where_the_cut_is_cancelled() -> None:
    tidying = Tidying()
    with StopRequest() as stop:
        cutting = asyncio.create_task(stop.cut(tidying.work()))
        await asyncio.sleep(0)
        stop.ask("q")
        await tidying.begun.wait()
        cutting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cutting
    assert tidying.ended


async def test_who_heard_signals_before_hears_them_again() -> None:
    heard: list[int] = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with StopRequest():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert heard == [signal.SIGTERM]
