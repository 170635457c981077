"""A URL in, text for a model out, safely and politely.

    __init__.py    read, configure: what tools.py and the tool worker call
    shared.py      the one browser of a process, in a thread of its own
    browser.py     URL in, text for the model out; each page read once
    guard.py       which URLs, which addresses
    source.py      the seam to whatever gets pages; http.py is plain HTTP
    sources.py     which of them a page comes from
    rendering.py   plain HTTP or Chromium
    tabs.py        pages by Chromium: waiting for a tab, deadlines; visit.py is one page in one
    chromium.py    the one Chromium of a worker; executable.py finds its program
    proxy.py       what Chromium reaches the web through
    store.py       what sites answered, on disk; stored.py serves it: record and replay
    adapters.py    pages that sites give away as data: what a project's tools.py registers
    extract.py     what a source got -> text
    pdf.py         PDF -> text, in a process of its own
    robots.py      what sites close to programs
    hosts.py       which hosts may be read
    politeness.py  how often a site is asked
    blocked.py     pages that only say "no programs here"
    pages.py       documents in memory, single flight
    markdown.py    HTML -> markdown, by crawl4ai
    page.py        markdown -> pages as the model sees them
    sites.py       local sites, served by the controller
    settings.py    what may be fetched, and how much
    errors.py      what the model is told where there is no page

Importing this package is cheap; aiohttp and crawl4ai are loaded by the first read.
"""

from typing import TYPE_CHECKING

from rnow.browser.adapters import adapter
from rnow.browser.rules.politeness import pace
from rnow.browser.settings import BrowserSettings
from rnow.browser.source import RawPage

if TYPE_CHECKING:
    from rnow.browser.text.pagination import Limiter

__all__ = ["BrowserSettings", "RawPage", "adapter", "configure", "pace", "read"]


async def read(url: str, page: int = 1) -> str:
    """Return the text of a web page as markdown, page by page, for a model to read.

    Always a string: either

        https://clinic.test/trial/1 (status 200, page 1 of 2)

        # Trial 1
        …
        [Continues: browse(url, page=2)]

    or one line `ERROR code: what is wrong.`, as for a host that `browser.allow_hosts` does not
    name.

        @tool
        async def browse(url: str, page: int = 1) -> str:
            return await rnow.browser.read(url, page)

    Counts browser/fetched, browser/stored (it came from the page store), browser/shared (this
    worker had it in memory) or browser/error_<code>, one of them a call; and browser/restarts where
    Chromium had ended and was started again for this page.
    """
    from rnow.browser import shared
    from rnow.core.counts import count

    answer = await shared.get().read(url, page)
    count(answer.counter)
    return answer.text


def configure(settings: BrowserSettings, limiter: "Limiter | None" = None) -> None:
    """Set the rules for this process; the tool worker does so before the first call."""
    from rnow.browser import shared

    shared.configure(settings, limiter)
