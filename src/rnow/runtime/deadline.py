"""Every await on another process or thread has a limit with a name, and is known while it lasts.

`async with within(30, "tools: start of worker 1"):` raises DeadlineError "tools: start of worker 1
has waited 30 s" when the block is not done in time; what the block awaited is cancelled. The line
goes to the log with the stacks of all tasks and threads, but these once a minute at most: where one
server hangs, a hundred requests do. What follows (retry, restart, drop, exit code 3) is the
caller's.

`waits()` is what all of them wait for at this moment; `rnow status` shows it.
"""

import asyncio
import io
import itertools
import logging
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from rnow.errors import DeadlineError

_log = logging.getLogger(__name__)

_STACKS_EVERY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """One wait that is under way."""

    what: str
    since: float  # time.monotonic()
    limit_s: float

    @property
    def waited_s(self) -> float:
        return time.monotonic() - self.since


_waits: dict[int, Wait] = {}
_ids = itertools.count()
_stacks_shown_at = -_STACKS_EVERY_S


@contextmanager
def waiting(what: str, *, limit_s: float) -> Iterator[None]:
    """Have `what` among `waits()` while the block runs; the limit is the caller's to keep."""
    id = next(_ids)
    _waits[id] = Wait(what=what, since=time.monotonic(), limit_s=limit_s)
    try:
        yield
    finally:
        del _waits[id]


@asynccontextmanager
async def within(seconds: float, what: str) -> AsyncIterator[None]:
    """Run the block for at most `seconds`; `what` names it in the error."""
    try:
        with waiting(what, limit_s=seconds):
            async with asyncio.timeout(seconds) as scope:
                yield
    except TimeoutError as error:
        # A TimeoutError that the block raised for reasons of its own is not ours to rename.
        if not scope.expired():
            raise
        message = f"{what} has waited {seconds:g} s"
        report_breach(message)
        raise DeadlineError(message) from error


def waits() -> tuple[Wait, ...]:
    """Return what is waited for now, the longest first."""
    return tuple(sorted(_waits.values(), key=lambda wait: wait.since))


def report_breach(message: str) -> None:
    """Write to the log that a limit has passed, with the stacks of all that is under way."""
    global _stacks_shown_at
    now = time.monotonic()
    if now - _stacks_shown_at < _STACKS_EVERY_S:
        _log.error("%s (stacks: above)", message)
        return
    _stacks_shown_at = now
    _log.error("%s\n%s", message, stacks())


def stacks() -> str:
    """Return where every asyncio task and every thread is; tasks at one place are counted."""
    places: Counter[str] = Counter()
    for task in asyncio.all_tasks():
        text = io.StringIO()
        task.print_stack(file=text)
        # The first line names one task; what follows is common to all that wait there.
        places[text.getvalue().partition("\n")[2]] += 1
    parts = [f"{count} × task at:\n{place}" for place, count in places.most_common()]
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        place = "".join(traceback.format_stack(frame))
        parts.append(f"thread {names.get(ident, ident)} at:\n{place}")
    return "\n".join(parts)
