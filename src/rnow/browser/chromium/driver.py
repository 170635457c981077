"""playwright's driver: the process of node through which Chromium is started and spoken to.

Playwright gives no hold of one that still starts, and one whose start is cancelled runs on. So it
is never cancelled while it may still come: one that is late is there for whoever asks next.
"""

import asyncio
from contextlib import suppress

from playwright.async_api import Error, Playwright, async_playwright

from rnow.runtime.deadline import within
from rnow.runtime.side_by_side import take_note

_START_TIMEOUT_S = 15.0
_CLOSE_TIMEOUT_S = 5.0


class Drivers:
    """Starts drivers, one at a time; never two because the first is late."""

    def __init__(self) -> None:
        self._starting: asyncio.Task[Playwright] | None = None

    async def start(self) -> Playwright:
        """Return a driver, which is the caller's to stop. Raises DeadlineError."""
        if self._starting is None:
            self._starting = asyncio.create_task(
                async_playwright().start(), name="start of Chromium's driver"
            )
            self._starting.add_done_callback(take_note)
        async with within(_START_TIMEOUT_S, "browser: start of Chromium's driver"):
            # Not by a shield: who is cancelled just as it comes would take it along.
            await asyncio.wait({self._starting})
        starting, self._starting = self._starting, None
        return starting.result()

    async def aclose(self) -> None:
        """Stop a driver that nobody has taken; one that does not come goes with this process."""
        starting, self._starting = self._starting, None
        if starting is None:
            return
        await asyncio.wait({starting}, timeout=_CLOSE_TIMEOUT_S)
        if not starting.done():
            starting.cancel()
            return
        if starting.cancelled() or starting.exception() is not None:
            return
        with suppress(Error, TimeoutError, OSError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await starting.result().stop()
