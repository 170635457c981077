"""A URL in, text for a model out, safely and politely.

    __init__.py    read, configure: what tools.py and the tool worker call
    shared.py      the one browser of a process, in a thread of its own
    reader.py      URL in, text for the model out; each page read once
    memory.py      documents in memory, single flight
    source.py      the seam to whatever gets pages; chain.py the sources in their order, plain HTTP
                   before Chromium
    http.py        plain HTTP; body.py reads what it answers
    adapters.py    pages that sites give away as data: what a project's tools.py registers
    page_finders.py  which pages a text means: what a project's tools.py tells rnow corpus
    local_sites.py local sites, served by the controller
    chromium/      source.py: waiting for a tab, deadlines; visit.py: one page in one; process.py:
                   the one Chromium of a worker; proxy.py: what it reaches the web through;
                   executable.py: its program; stand_in.py: that program for projects' own code
    store/         what sites answered, on disk; source.py serves it: record and replay
    text/          markdown.py: HTML -> markdown, by crawl4ai; pdf.py; extract.py: which of them;
                   pagination.py: pages as the model sees them
    rules/         guard.py: which URLs, which addresses; hosts.py: which hosts; robots.py: what
                   sites close to programs; politeness.py: how often a site is asked;
                   refusals.py: answers that are no page
    settings.py    what may be fetched, and how much
    errors.py      what the model is told where there is no page

Importing this package is cheap; aiohttp and crawl4ai are loaded by the first read.
"""

from rnow.browser.adapters import adapter
from rnow.browser.page_finders import page_finder
from rnow.browser.rules.politeness import pace
from rnow.browser.settings import BrowserSettings
from rnow.browser.shared import configure
from rnow.browser.source import RawPage

__all__ = ["BrowserSettings", "RawPage", "adapter", "configure", "pace", "page_finder", "read"]


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
