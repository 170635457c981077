"""Every await on another process or thread has a limit with a name.

`async with within(30, "tools: start of worker 1"):` raises DeadlineError "tools: start of worker 1
has waited 30 s" when the block is not done in time. What the block awaited is cancelled.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rnow.errors import DeadlineError

__all__ = ["within"]


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Run the block for at most `seconds`; `what` names it in the error."""
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError as error:
        # A TimeoutError that the block raised for reasons of its own is not ours to rename.
        if not scope.expired():
            raise
        raise DeadlineError(f"{what} has waited {seconds:g} s") from error
