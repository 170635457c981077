"""Whether a process runs or stands still, and waiting until something is so."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

from rnow.errors import DeadlineError

PATIENCE_S = 240.0  # for what comes in a moment: a busy machine needs some of it, a fault all


def is_alive(pid: int) -> bool:
    """Say whether the process runs; a zombie, whose parent has not asked for it yet, does not."""
    with suppress(OSError):
        if sys.platform == "linux":
            return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
        os.kill(pid, 0)
        return True
    return False


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            await asyncio.sleep(0.02)


def wait_until_held(pid: int) -> None:
    """Wait for a child to come to where RNOW_HOLD_AT has it stand still."""

    def is_held() -> bool:
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        assert not found or os.WIFSTOPPED(status), os.waitstatus_to_exitcode(status)
        return bool(found)

    wait_until(is_held)


def within_until(exists: Path) -> Callable[[float, str], AbstractAsyncContextManager[None]]:
    """Return a deadline, to stand in for `within`, that passes a moment after a file is there."""

    @asynccontextmanager
    async def within(limit_s: float, what: str) -> AsyncIterator[None]:
        async def pass_by(limit: asyncio.Timeout) -> None:
            await until(exists.exists)
            limit.reschedule(asyncio.get_running_loop().time() + 0.2)

        try:
            async with asyncio.timeout(None) as limit:
                passing = asyncio.create_task(pass_by(limit))
                yield
        except TimeoutError as error:
            raise DeadlineError(f"{what} has waited {limit_s:g} s") from error
        finally:
            passing.cancel()

    return within
