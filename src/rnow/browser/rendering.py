"""Plain HTTP or Chromium: plain HTTP first, and Chromium for pages that their scripts fill.

A page goes to Chromium at once if its host is one of `browser.render_hosts`; and after plain HTTP
if what came has scripts, or sends its reader on, and almost no text. Where Chromium cannot help,
the page stays what plain HTTP gave.
"""

import asyncio
import logging
import re

from yarl import URL

from rnow.browser.errors import BrowseError, NotRenderedError
from rnow.browser.rules.guard import covers, normalize_host
from rnow.browser.settings import BrowserSettings
from rnow.browser.source import PageSource, RawPage
from rnow.browser.text.markdown import shows_at_least

_LOG = logging.getLogger(__name__)
_DOES_SOMETHING = re.compile(rb"<script|http-equiv\s*=\s*[\"']?refresh", re.IGNORECASE)


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

    async def fetch(self, url: URL) -> RawPage:
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
            return await self._browser.fetch(page.url)
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
