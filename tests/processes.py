"""Whether a process runs or stands still, and waiting until something is so."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

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
