"""asyncio.run for work whose result may be large."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_main(work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns, in an event loop of its own.

    asyncio.run gives Ctrl-C back by signal.signal, which makes a sentence of what it was given to,
    and that names the task and writes out its whole result: minutes for thousands of trajectories.
    """
    results: list[Result] = []

    async def keep() -> None:
        results.append(await work)

    asyncio.run(keep())
    return results[0]
