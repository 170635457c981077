"""asyncio.run for a command: its first signal to stop, and a result that may be large."""

import asyncio
import logging
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

from rnow.runtime.stop_signals import first_signal, raise_for

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


def run_main(work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns, in an event loop of its own.

    The first signal cancels `work`, and is told once all has ended that it left; raised amid
    whatever runs, it would leave tasks behind. A `StopRequest` in it hears signals in its place.

    asyncio.run gives Ctrl-C back by signal.signal, which makes a sentence of what it was given to,
    and that names the task and writes out its whole result: minutes for thousands of trajectories.
    """
    results: list[Result] = []
    asked: list[signal.Signals] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    async def keep() -> None:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        if not asked:
            results.append(await work)

    def cancel(number: signal.Signals) -> None:
        asked.append(number)
        for loop, task in running:
            if not loop.is_closed():
                loop.call_soon_threadsafe(task.cancel)  # wakes the loop, too

    with first_signal(cancel):
        try:
            asyncio.run(keep())
        except (asyncio.CancelledError, Exception) as error:
            if not asked:
                raise
            if isinstance(error, Exception):
                # For a log alone: on the terminal the stop is what is told.
                logger.info("an error amid the end that was asked for", exc_info=error)
        finally:
            work.close()  # else Python warns on the terminal where it was never awaited
    if asked:
        raise_for(asked[0])
    return results[0]
