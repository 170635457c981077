"""The one Chromium of a tool worker: started when it is first needed, replaced where it has died.

It runs under crawl4ai's crawler, but is launched in our own way: crawl4ai's never tries the
sandbox, knows no Chromium but playwright's, and hides from sites that a program is reading them.
Each tab has a context of its own: no cookie, cache or service worker is shared, and the proxy
knows whose connection it serves. A tab whose visit went well is wiped and used again, since a new
one costs a process or two; any other is closed.
"""

import asyncio
import logging
import os
import tempfile
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from playwright.async_api import BrowserContext, Error, Page

from rnow.browser.chromium.proxy import ForwardProxy, Lease
from rnow.browser.chromium.visit import Visit
from rnow.browser.settings import BrowserSettings
from rnow.browser.text.crawl4ai_import import loading_crawl4ai
from rnow.core.counts import count
from rnow.errors import DeadlineError
from rnow.runtime.deadline import within

with loading_crawl4ai():
    from crawl4ai.async_configs import BrowserConfig, CrawlerRunConfig, ProxyConfig
    from crawl4ai.async_crawler_strategy import AsyncPlaywrightCrawlerStrategy

_LOG = logging.getLogger(__name__)
_START_TIMEOUT_S = 30.0
_DRIVER_TIMEOUT_S = 15.0
_MAX_QUOTED_LINES = 5
_CLOSE_TIMEOUT_S = 5.0
_BODY_VISIBILITY_TIMEOUT_MS = 1_000
_DISABLED_FEATURES = (
    # Chromium takes the last list alone, so playwright's own is here again, as far as it matters.
    *("HttpsUpgrades", "HttpsFirstBalancedModeAutoEnable", "AvoidCorsURLLoaderRestartOnRedirect"),
    *("AvoidUnnecessaryBeforeUnloadCheckSync", "DestroyProfileOnBrowserClose", "PaintHolding"),
    *("ThirdPartyStoragePartitioning", "OptimizationHints", "NetworkTimeServiceQuerying"),
    *("AimEnabled", "PreconnectToSearch", "LensOverlay"),
    # Spare processes, which a profile that lives for one page starts and never uses; casting.
    *("SpareRendererForSitePerProcess", "MediaRouter", "DialMediaRouteProvider", "Translate"),
)
_MAX_TMP_CHARS = 30  # the path of a socket has 104, and Chromium's are long
_FLAGS = (
    # Nothing goes around the proxy.
    "--disable-quic",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--dns-prefetch-disable",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # Nothing that is not the page's.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-pings",
    f"--disable-features={','.join(_DISABLED_FEATURES)}",
    # Text is all that is wanted.
    "--blink-settings=imagesEnabled=false",
    "--disable-gpu",
    "--mute-audio",
    "--js-flags=--max-old-space-size=512",
    # In containers /dev/shm is small.
    "--disable-dev-shm-usage",
)
_NO_SANDBOX_SIGNS = ("no usable sandbox", "without --no-sandbox", "zygote_host_impl", "namespace")
# Variables that loosen what the flags tighten.
_LOOSENING = (
    "PLAYWRIGHT_DISABLE_FORCED_CHROMIUM_PROXIED_LOOPBACK",
    "PLAYWRIGHT_PROXY_BYPASS_FOR_TESTING",
)
_visiting: ContextVar[Visit] = ContextVar("_visiting")


class ChromiumFailedError(Exception):
    """The browser did not start, or died. The message is for a log, not for the model."""


class Chromium:
    """One browser process with its crawler; `visit` may be called many times at once."""

    def __init__(self, settings: BrowserSettings, proxy: ForwardProxy) -> None:
        assert settings.executable is not None
        self.num_starts = 0
        self._settings = settings
        self._proxy = proxy
        self._executable = Path(settings.executable)
        self._with_sandbox = True  # until it has been refused
        self._crawler: AsyncPlaywrightCrawlerStrategy | None = None
        self._starting = asyncio.Lock()
        self._making_tab = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()  # tabs that are being closed
        here = tempfile.gettempdir()
        self._home = tempfile.TemporaryDirectory(
            prefix="rnow-chromium-",
            dir=here if len(here) <= _MAX_TMP_CHARS else "/tmp",
            ignore_cleanup_errors=True,
        )

    @property
    def num_tabs(self) -> int:
        """How many pages are open in the browser; a context that lost its page counts as one."""
        if not self.is_alive:
            return 0
        assert self._crawler is not None
        contexts = self._crawler.browser_manager.browser.contexts
        return sum(max(len(context.pages), 1) for context in contexts)

    @property
    def is_alive(self) -> bool:
        return self._crawler is not None and self._crawler.browser_manager.browser.is_connected()

    def is_running(self, start: int) -> bool:
        """Return whether the browser of this start, the first is 1, is still the one that runs."""
        return start == self.num_starts and self.is_alive

    async def ensure(self) -> None:
        """Start the browser unless it is alive. Must not be cancelled.

        Counts browser/restarts where another one ran before.
        """
        async with self._starting:
            if self.is_alive:
                return
            if self.num_starts:
                _LOG.warning("Chromium has ended and is started again")
            await self._discard()
            self._crawler = await self._start()
            self.num_starts += 1
            if self.num_starts > 1:
                count("browser/restarts")

    async def visit(self, visit: Visit, lease: Lease) -> None:
        """Load a page in the lease's tab of the browser that `ensure` started; `visit` tells more.

        Raises playwright's or crawl4ai's errors. Must not be cancelled: close the visit.
        """
        assert self._crawler is not None
        _visiting.set(visit)
        config = CrawlerRunConfig(
            verbose=False,
            wait_until="domcontentloaded",
            page_timeout=int(1_000 * self._settings.render_timeout_s),
            body_visibility_timeout=_BODY_VISIBILITY_TIMEOUT_MS,
            session_id=lease.username,  # which keeps the tab open
            proxy_config=ProxyConfig(
                server=f"http://127.0.0.1:{self._proxy.port}",
                username=lease.username,
                password=lease.password,
            ),
        )
        crawl = self._crawler.crawl
        if lease.username in self._crawler.browser_manager.sessions:
            await crawl(str(visit.url), config)
            return
        # One new tab at a time: those whose visits are given up meanwhile are never made.
        async with self._making_tab:
            if visit.is_closed:
                return
            crawling = asyncio.create_task(crawl(str(visit.url), config), name="crawl")
            crawling.add_done_callback(lambda _: visit.begun.set())
            await visit.begun.wait()
        await crawling

    async def end_tab(self, lease: Lease) -> None:
        """Close the lease's tab, if it has one. A browser that is busy does it after this returns.

        Never cancelled: crawl4ai closes the page first, and a context without one would stay.
        """
        crawler = self._crawler
        if crawler is None or lease.username not in crawler.browser_manager.sessions:
            return

        def ended(task: "asyncio.Task[None]") -> None:
            self._ending.discard(task)
            crawler.browser_manager.sessions.pop(lease.username, None)
            # The browser may have ended meanwhile, and crawl4ai have forgotten its tabs.
            if not task.cancelled() and (error := task.exception()) is not None:
                _LOG.debug("a tab was closed already: %r", error)

        ending = asyncio.create_task(crawler.kill_session(lease.username), name="end of a tab")
        self._ending.add(ending)
        ending.add_done_callback(ended)
        await asyncio.wait({ending}, timeout=_CLOSE_TIMEOUT_S)

    async def discard(self, start: int) -> None:
        """End the browser of this start, however it is, unless there is another one by now."""
        if start == self.num_starts:
            await self._discard()

    async def aclose(self) -> None:
        await self._discard()
        for ending in list(self._ending):
            ending.cancel()
        await asyncio.to_thread(self._home.cleanup)

    async def _discard(self) -> None:
        crawler, self._crawler = self._crawler, None
        if crawler is None:
            return
        driver = crawler.browser_manager.playwright
        # KeyError: a tab that is being closed, whose end crawl4ai has seen already.
        with suppress(Error, TimeoutError, KeyError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await crawler.close()
                return
        # The driver takes its browser with it.
        with suppress(Error, TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await driver.stop()

    async def _start(self) -> AsyncPlaywrightCrawlerStrategy:
        try:
            return await self._launch()
        except Error as error:
            text = str(error).lower()
            if not self._with_sandbox or not any(sign in text for sign in _NO_SANDBOX_SIGNS):
                raise self._failed(error) from error
        _LOG.warning(
            "Chromium runs without its sandbox, which it was refused: root never has one, nor have "
            "many containers"
        )
        self._with_sandbox = False
        try:
            return await self._launch()
        except Error as error:
            raise self._failed(error) from error

    def _failed(self, error: Error) -> ChromiumFailedError:
        first, *rest = str(error).splitlines()
        printed = [line for line in rest if "[err]" in line][:_MAX_QUOTED_LINES]
        return ChromiumFailedError(
            "\n".join([f"{self._executable} did not start: {first}", *printed])
        )

    async def _launch(self) -> AsyncPlaywrightCrawlerStrategy:
        for name in _LOOSENING:
            os.environ.pop(name, None)
        config = BrowserConfig(
            verbose=False,
            ignore_https_errors=False,
            accept_downloads=False,
            user_agent=self._settings.user_agent,
        )
        crawler = AsyncPlaywrightCrawlerStrategy(browser_config=config, logger=_Silence())
        options = self._launch_options()
        crawler.browser_manager._build_browser_args = lambda: options
        crawler.set_hook("on_page_context_created", _begin)
        crawler.set_hook("after_goto", _capture)
        # Playwright limits the start of the browser; its driver is one more process to wait for.
        try:
            async with within(_START_TIMEOUT_S + _DRIVER_TIMEOUT_S, "browser: start of Chromium"):
                await crawler.start()
        except DeadlineError as error:
            raise ChromiumFailedError(str(error)) from error
        return crawler

    def _launch_options(self) -> dict[str, Any]:
        kept = ("PATH", "LANG", "LD_LIBRARY_PATH", "TZ")
        return {
            "headless": True,
            "executable_path": str(self._executable),
            "chromium_sandbox": self._with_sandbox,
            "args": list(_FLAGS),
            "proxy": {"server": f"http://127.0.0.1:{self._proxy.port}", "bypass": "<-loopback>"},
            "timeout": 1_000 * _START_TIMEOUT_S,
            # The keys of the project's tools are none of its business, nor is the user's profile.
            "env": {name: os.environ[name] for name in kept if name in os.environ}
            | {"HOME": self._home.name, "TMPDIR": self._home.name},
            "handle_sigint": False,
            "handle_sigterm": False,
            "handle_sighup": False,
        }


class _Silence:
    """A logger for crawl4ai, whose own writes a file that grows for ever."""

    def debug(self, *_: Any, **__: Any) -> None: ...

    info = success = warning = error = error_status = url_status = debug


async def _begin(tab: Page, context: BrowserContext, **_: Any) -> Page:
    await _visiting.get().begin(tab, context)
    return tab


async def _capture(tab: Page, **_: Any) -> Page:
    await _visiting.get().capture()
    return tab
