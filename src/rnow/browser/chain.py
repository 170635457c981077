"""Who gets a page: the store, then whoever has it as data, then plain HTTP, and Chromium where
scripts make the page.
"""

from dataclasses import replace

from rnow.browser.adapters import AdapterSource
from rnow.browser.chromium.source import ChromiumSource
from rnow.browser.http import HttpSource
from rnow.browser.rendering import RenderingSource
from rnow.browser.rules.politeness import Pacer
from rnow.browser.settings import BrowserSettings
from rnow.browser.source import PageSource
from rnow.browser.store.source import StoredSource


def page_source(settings: BrowserSettings) -> PageSource:
    """Return the sources of one browser, put together in their order."""
    pacer = Pacer(max_wait_s=settings.max_wait_s, num_workers=settings.num_workers)
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
