"""Who gets a page: the store, then whoever has it as data, then plain HTTP, and Chromium where
scripts make the page.

A page goes to Chromium at once if its host is one of `browser.render_hosts`; and after plain HTTP
if what came has scripts, or sends its reader on, and almost no text. Where Chromium cannot help,
the page stays what plain HTTP gave.
"""

import asyncio
import logging
import re
import time
from dataclasses import replace

from yarl import URL

from rnow.browser.adapters import ADAPTERS, Adapter
from rnow.browser.chromium.source import ChromiumSource
from rnow.browser.errors import BrowseError, NotRenderedError
from rnow.browser.http import HttpSource
from rnow.browser.rules.guard import covers, normalize_host
from rnow.browser.rules.hosts import AllowedUrl, HostRules
from rnow.browser.rules.politeness import Pacer
from rnow.browser.settings import BrowserSettings
from rnow.browser.source import PageSource, RawPage
from rnow.browser.store.source import StoredSource
from rnow.browser.text.markdown import shows_at_least

_LOG = logging.getLogger(__name__)
_KEPT_S = 86_400.0  # data that serve many pages
_DOES_SOMETHING = re.compile(rb"<script|http-equiv\s*=\s*[\"']?refresh", re.IGNORECASE)


def page_source(settings: BrowserSettings) -> PageSource:
    """Return the sources of one browser, put together in their order."""
    pacer = Pacer(settings)
    http = HttpSource(settings, pacer=pacer)
    if settings.source == "http":
        return http
    browser: ChromiumSource | None = None
    if settings.executable is not None:
        browser = ChromiumSource(settings, pacer=pacer, check_robots=http.check_robots)
    if settings.source == "browser":
        return RenderingSource(http, browser, replace(settings, render_hosts=("*",)))
    live = AdapterSource(RenderingSource(http, browser, settings), http, settings)
    return live if settings.store is None else StoredSource(live, settings)


class AdapterSource:
    """A PageSource that asks `inner` for the pages that no adapter knows.

    `http`, which gets the data, is `inner` or closed by it.
    """

    def __init__(self, inner: PageSource, http: HttpSource, settings: BrowserSettings) -> None:
        self._inner = inner
        self._http = http
        self._hosts = HostRules(settings)
        self._kept: dict[URL, tuple[float, RawPage]] = {}

    async def fetch(self, url: AllowedUrl) -> RawPage:
        """Return the data that make the page, under the page's URL, or the page itself."""
        for adapter in ADAPTERS.values():
            place = self._place_of_data(url, adapter)
            if place is not None:
                data = await self._fetch_data(place, adapter)
                return replace(data, url=url, status=200, source=adapter.name)
        return await self._inner.fetch(url)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _place_of_data(self, url: URL, adapter: Adapter) -> AllowedUrl | None:
        place = adapter.locate(url)
        try:
            return None if place is None else self._hosts.check(place)
        except BrowseError:
            return None  # the list names the host of the page alone

    async def _fetch_data(self, url: AllowedUrl, adapter: Adapter) -> RawPage:
        if not adapter.is_for_all:
            return await self._http.fetch(url, is_data=True)
        kept = self._kept.get(url)
        if kept is None or kept[0] < time.monotonic():
            kept = (time.monotonic() + _KEPT_S, await self._http.fetch(url, is_data=True))
            self._kept[url] = kept
        return kept[1]


class RenderingSource:
    """A PageSource over two others; without a `browser`, all pages come from `http`."""

    def __init__(
        self, http: PageSource, browser: PageSource | None, settings: BrowserSettings
    ) -> None:
        self._http = http
        self._browser = browser
        self._render_hosts = tuple(map(normalize_host, settings.render_hosts))
        self._min_visible_chars = settings.min_visible_chars
        self._has_warned = False

    async def fetch(self, url: AllowedUrl) -> RawPage:
        if any(covers(entry, url.raw_host or "") for entry in self._render_hosts):
            if self._browser is not None:
                try:
                    return await self._browser.fetch(url)
                except NotRenderedError:
                    return await self._http.fetch(url)
            self._warn(url)
        page = await self._http.fetch(url)
        if not await self._waits_for_scripts(page):
            return page
        if self._browser is None:
            self._warn(url)
            return page
        try:
            return await self._browser.fetch(AllowedUrl(page.url))  # HTTP was led there
        except BrowseError as error:
            _LOG.info("%s stays as plain HTTP gave it: %s", url, error.text)
            return page

    async def aclose(self) -> None:
        await self._http.aclose()
        if self._browser is not None:
            await self._browser.aclose()

    async def _waits_for_scripts(self, page: RawPage) -> bool:
        if not page.is_html or not _DOES_SOMETHING.search(page.body):
            return False
        return not await asyncio.to_thread(shows_at_least, self._min_visible_chars, page.text())

    def _warn(self, url: URL) -> None:
        if not self._has_warned:
            _LOG.warning("%s needs a Chromium to be read, and there is none", url)
        self._has_warned = True
