"""One browser: URL in, text for the model out.

    check_url, HostRules ─▶ PageCache ─▶ PageSource ─▶ markdown ─▶ pages within the limiter's tokens

The sources and their order are put together by chain.py.

Belongs to one event loop. `rnow.browser.shared` keeps the one of a tool worker.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from rnow.browser.chain import page_source
from rnow.browser.errors import BrowseError
from rnow.browser.memory import PageCache
from rnow.browser.rules.guard import check_url
from rnow.browser.rules.hosts import AllowedUrl, HostRules
from rnow.browser.settings import BrowserSettings
from rnow.browser.source import PageSource, RawPage
from rnow.browser.text.extract import extract_text
from rnow.browser.text.pagination import Document, Limiter, paginate, show_page

_LOG = logging.getLogger(__name__)
_NUM_CONVERTERS = 2  # threads; one page that takes long leaves the other to the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Answer(text="https://… (status 200, page 1 of 1)…", url="https://…", cache="none", …)."""

    text: str
    code: str = "ok"  # or that of the error
    url: str | None = None  # after redirects; None where there is no page, like the two below
    source: str | None = None
    cache: Literal["memory", "store", "none"] | None = None

    @property
    def counter(self) -> str:
        """What is counted: browser/fetched, …/stored, …/shared or …/error_<code>."""
        counters = {"none": "fetched", "store": "stored", "memory": "shared"}
        return f"browser/{counters[self.cache] if self.cache else f'error_{self.code}'}"


class Browser:
    """Reads pages; each of them once, however many ask for it at the same time.

    async with Browser(settings, limiter) as browser:
        answer = await browser.read("https://clinic.test/")
    """

    def __init__(
        self,
        settings: BrowserSettings,
        limiter: Limiter | None = None,
        *,
        source: PageSource | None = None,
    ) -> None:
        self._settings = settings
        self._hosts = HostRules(settings)
        self._limiter = limiter
        self._source = source or page_source(settings)
        self._pages = PageCache(max_bytes=settings.max_cached_bytes)
        self._converters = ThreadPoolExecutor(_NUM_CONVERTERS, thread_name_prefix="rnow-convert")

    async def __aenter__(self) -> "Browser":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._pages.aclose()
        await self._source.aclose()
        self._converters.shutdown(wait=False, cancel_futures=True)

    async def read(self, url: str, page: int = 1) -> Answer:
        """Return page `page` of a URL, or one line that says why there is none."""
        try:
            return await self._read(url, page)
        except BrowseError as error:
            _LOG.info("%s: %s (%r)", url, error.text, error.__cause__)
            why = error
        # Parsers meet hostile input here, and the model's answer must show none of our inside.
        except Exception as error:
            _LOG.exception("%s could not be read: %s", url, error)
            why = BrowseError("unreadable", "this page could not be turned into text.")
        return Answer(text=why.text, code=why.code)

    async def _read(self, url: str, page: int) -> Answer:
        checked = self._hosts.check(check_url(url, ports=self._settings.ports))
        document, is_shared = await self._pages.get(str(checked), lambda: self._document(checked))
        num_pages = len(document.pages)
        if not 1 <= page <= num_pages:
            raise BrowseError("bad_page", f"this document has pages 1 to {num_pages}.")
        return Answer(
            text=show_page(document, page),
            url=document.url,
            source=document.source,
            cache="memory" if is_shared else "store" if document.is_stored else "none",
        )

    async def _document(self, url: AllowedUrl) -> Document:
        raw = await self._source.fetch(url)
        conversion = asyncio.get_running_loop().run_in_executor(
            self._converters, _to_document, raw, self._limiter
        )
        try:
            async with asyncio.timeout(self._settings.convert_timeout_s):
                return await conversion
        except TimeoutError as error:
            sentence = "this page took too long to be turned into text."
            raise BrowseError("timeout", sentence) from error


def _to_document(raw: RawPage, limiter: Limiter | None) -> Document:
    """Convert and cut; blocks."""
    text = extract_text(raw)
    document = paginate(text, url=str(raw.url), status=raw.status, limiter=limiter)
    return replace(document, source=raw.source, is_stored=raw.is_stored)
