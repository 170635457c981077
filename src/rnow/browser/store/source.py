"""Pages from the store first: record, replay, and one fetch for all workers.

| mode             | the store has the page     | it has not                                |
|------------------|----------------------------|-------------------------------------------|
| live             | served, if young enough    | fetched and kept; local sites never kept  |
| record           | served, however old        | fetched and kept                          |
| replay           | served, however old        | ERROR not_in_corpus; no network           |
| replay_then_live | served, however old        | fetched, not kept                         |

So a recorded run can be stopped and gone on with, and each page is in it once. In the last two
modes the store is opened for reading alone. The rules of the hosts come first in all of them: a
page of a host that is no longer on the list is refused, kept or not.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from yarl import URL

from rnow.browser.errors import BrowseError
from rnow.browser.rules.hosts import AllowedUrl, HostRules
from rnow.browser.settings import BrowserSettings
from rnow.browser.source import PageSource, RawPage
from rnow.browser.store.store import PageStore

T = TypeVar("T")

NOT_IN_CORPUS = "this page was not recorded; only pages of the corpus can be read here."
_POLL_S = 0.05
_PATIENCE_S = 10.0  # on top of what the process that fetches may take


class StoredSource:
    """A PageSource that asks `inner` for what the store cannot serve."""

    def __init__(self, inner: PageSource, settings: BrowserSettings) -> None:
        assert settings.store is not None
        self._inner = inner
        self._settings = settings
        self._hosts = HostRules(settings)
        self._folder = Path(settings.store)
        self._store: PageStore | None = None  # opened by the first page that needs it
        self._is_read_only = settings.store_mode in ("replay", "replay_then_live")
        # SQLite, zstd and hashes block for milliseconds: not on the loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rnow-store")

    async def fetch(self, url: AllowedUrl) -> RawPage:
        """Return the page, from the store where it has it, or raise BrowseError."""
        mode = self._settings.store_mode
        if mode == "live" and self._hosts.local_port(url.raw_host) is not None:
            # A folder on this machine: there is no site to spare, and it may change at any time.
            return await self._inner.fetch(url)
        found = await self._look_up(url)
        if found is not None:
            return found
        if mode == "replay":
            raise BrowseError("not_in_corpus", NOT_IN_CORPUS)
        if mode == "replay_then_live":
            return await self._inner.fetch(url)
        async with self._claimed(url):
            # Whoever had the claim before may have been after the same page.
            return await self._look_up(url) or await self._fetch_and_keep(url)

    async def aclose(self) -> None:
        await self._inner.aclose()
        if self._store is not None:
            await self._in_thread(self._store.close)
        self._thread.shutdown()

    async def _look_up(self, url: URL) -> RawPage | None:
        """Return the stored page; raise the stored error."""
        found = await self._in_thread(self._opened().get, url)
        if found is None:
            return None
        age_s = time.time() - found.fetched_at
        if self._settings.store_mode == "live" and not 0 <= age_s < self._settings.ttl_s:
            return None
        if isinstance(found.answer, BrowseError):
            raise found.answer
        self._hosts.check(found.answer.url)  # where it led when it was kept
        return replace(found.answer, is_stored=True)

    async def _fetch_and_keep(self, url: AllowedUrl) -> RawPage:
        try:
            page = await self._inner.fetch(url)
        except BrowseError as error:
            if error.is_lasting:
                await self._in_thread(self._opened().put, url, error)
            raise
        await self._in_thread(self._opened().put, url, page)
        return page

    @asynccontextmanager
    async def _claimed(self, url: URL) -> AsyncIterator[None]:
        """Be the one process that fetches this URL."""
        store = self._opened()
        limit_s = self._settings.fetch_timeout_s + self._settings.max_wait_s + _PATIENCE_S
        deadline = time.monotonic() + limit_s
        while not store.try_claim(url):
            if time.monotonic() > deadline:
                raise BrowseError("timeout", "another reader has waited too long for this page.")
            await asyncio.sleep(_POLL_S)
        try:
            yield
        finally:
            store.release(url)

    def _opened(self) -> PageStore:
        if self._store is None:
            self._store = PageStore(self._folder, read_only=self._is_read_only)
        return self._store

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
