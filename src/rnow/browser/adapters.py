"""Pages that their sites give away as data: fetched as that, shown as a reader would see them.

| a page of                                           | is made of                        |
|-----------------------------------------------------|-----------------------------------|
| clinicaltrials.gov/study/NCT…, /ct2/show/NCT…       | clinicaltrials.gov/api/v2/studies |
| …/cder/daf/?event=…&ApplNo=… or searchterm=…        | api.fda.gov/drug/drugsfda.json    |
| api.fda.gov/drug/drugsfda.json?search=…             | itself                            |
| …/cder/ob/results_product.cfm?Appl_No=…             | www.fda.gov/media/76860/download  |
| …/cder/ob/patent_info.cfm?Appl_No=…&Product_No=…    | the same                          |
| …/cder/ob/search_product.cfm?drugname=…             | the same                          |

A study page is an application that holds no text before it runs, and the FDA's pages turn programs
away; their data are there for programs. So robots.txt is not asked for data, but the guard, the
pace and `browser.allow_hosts` hold: where the list does not name the host of the data, the page
itself is read.

To add one: a module with an `Adapter`, and its name in the tuple below. What is stored is the data
as it came; `render` is pure.
"""

import time

from yarl import URL

from rnow.browser.adapter import Adapter
from rnow.browser.errors import BrowseError
from rnow.browser.http import HttpSource
from rnow.browser.rules.hosts import HostRules
from rnow.browser.settings import BrowserSettings
from rnow.browser.source import PageSource, RawPage
from rnow.medbrowse import clinicaltrials, drugs_at_fda, orange_book

ADAPTERS = (clinicaltrials.ADAPTER, drugs_at_fda.ADAPTER, orange_book.ADAPTER)

_BY_NAME = {adapter.name: adapter for adapter in ADAPTERS}
_KEPT_S = 86_400.0


def render(page: RawPage) -> str | None:
    """Return the markdown of an adapter's answer; None for what no adapter got."""
    adapter = _BY_NAME.get(page.source)
    return None if adapter is None else adapter.render(page)


class AdapterSource:
    """A PageSource that asks `inner` for the pages that no adapter knows.

    `http`, which gets the data, is `inner` or closed by it.
    """

    def __init__(self, inner: PageSource, http: HttpSource, settings: BrowserSettings) -> None:
        self._inner = inner
        self._http = http
        self._hosts = HostRules(settings)
        self._kept: dict[URL, tuple[float, RawPage]] = {}

    async def fetch(self, url: URL) -> RawPage:
        """Return the data that make the page, under the page's URL, or the page itself."""
        for adapter in ADAPTERS:
            place = adapter.locate(url)
            if place is not None and self._may_read(place):
                data = await self._fetch_data(place, adapter)
                return RawPage(
                    url=url,
                    status=200,
                    content_type=data.content_type,
                    charset=data.charset,
                    body=data.body,
                    source=adapter.name,
                )
        return await self._inner.fetch(url)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _may_read(self, url: URL) -> bool:
        try:
            self._hosts.check(url)
        except BrowseError:
            return False
        return True

    async def _fetch_data(self, url: URL, adapter: Adapter) -> RawPage:
        if not adapter.is_for_all:
            return await self._http.fetch_data(url)
        kept = self._kept.get(url)
        if kept is None or kept[0] < time.monotonic():
            kept = (time.monotonic() + _KEPT_S, await self._http.fetch_data(url))
            self._kept[url] = kept
        return kept[1]
