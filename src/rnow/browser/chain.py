"""Who gets a page: the store, then whoever has it as data, then plain HTTP, and Chromium where
scripts make the page.
"""

import time
from dataclasses import replace

from yarl import URL

from rnow.browser.adapters import ADAPTERS, Adapter
from rnow.browser.chromium.source import ChromiumSource
from rnow.browser.errors import BrowseError
from rnow.browser.http import HttpSource
from rnow.browser.rendering import RenderingSource
from rnow.browser.rules.hosts import AllowedUrl, HostRules
from rnow.browser.rules.politeness import Pacer
from rnow.browser.settings import BrowserSettings
from rnow.browser.source import PageSource, RawPage
from rnow.browser.store.source import StoredSource

_KEPT_S = 86_400.0  # data that serve many pages


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
