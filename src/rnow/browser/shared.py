"""The one browser of this process, on an event loop in a thread of its own.

So it serves all callers alike: async tools on the worker's loop, sync ones that call `asyncio.run`,
loops that nest_asyncio patched. And what blocks one side, a large page or a careless tool, does not
hold up the other. The thread starts with the first read, and loads aiohttp and crawl4ai there.
"""

import asyncio
import threading
from typing import TYPE_CHECKING

from rnow.browser.settings import BrowserSettings

if TYPE_CHECKING:
    from rnow.browser.reader import Answer, Browser
    from rnow.browser.text.pagination import Limiter

_CLOSE_TIMEOUT_S = 5.0


class SharedBrowser:
    """A browser that any thread and any event loop may use."""

    def __init__(self, settings: BrowserSettings, limiter: "Limiter | None" = None) -> None:
        self._settings = settings
        self._limiter = limiter
        self._browser: Browser | None = None  # of the thread alone
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="rnow-browser", daemon=True)
        self._thread.start()

    async def read(self, url: str, page: int = 1) -> "Answer":
        """Read in the browser's thread; a caller that is cancelled stops waiting there too."""
        reading = asyncio.run_coroutine_threadsafe(self._read(url, page), self._loop)
        return await asyncio.wrap_future(reading)

    def close(self) -> None:
        """End the thread; what is still being read ends as cancelled."""
        closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
        closing.result(timeout=_CLOSE_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_CLOSE_TIMEOUT_S)

    async def _read(self, url: str, page: int) -> "Answer":
        if self._browser is None:
            from rnow.browser.reader import Browser

            self._browser = Browser(self._settings, self._limiter)
        return await self._browser.read(url, page)

    async def _close(self) -> None:
        if self._browser is not None:
            await self._browser.aclose()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()


_lock = threading.Lock()
_rules: "tuple[BrowserSettings, Limiter | None]" = (BrowserSettings(), None)
_browser: SharedBrowser | None = None


def configure(settings: BrowserSettings, limiter: "Limiter | None" = None) -> None:
    """Set the rules for all later reads of this process. Costs nothing until the first of them.

    The tool worker does so before the first call.
    """
    global _rules
    close()
    with _lock:
        _rules = (settings, limiter)


def get() -> SharedBrowser:
    """Return this process's browser; the first call starts it."""
    global _browser
    with _lock:
        if _browser is None:
            _browser = SharedBrowser(*_rules)
        return _browser


def close() -> None:
    """End this process's browser, if it has one; the next read starts another."""
    global _browser
    with _lock:
        browser, _browser = _browser, None
    if browser is not None:
        browser.close()
