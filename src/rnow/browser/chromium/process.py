"""One process of Chromium and its tabs, from start to end; source.py replaces one that has died.

Each tab has a context of its own: no cookie, cache or service worker is shared, and the proxy
knows whose connection it serves. A tab whose visit went well is wiped and used again, since a new
one costs a process or two; any other is closed.
"""

import asyncio
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from playwright.async_api import Browser, BrowserContext, Error, Page, Playwright

from rnow.browser.chromium.driver import Drivers
from rnow.browser.chromium.proxy import ForwardProxy, Lease
from rnow.browser.chromium.visit import Visit
from rnow.browser.settings import BrowserSettings
from rnow.errors import DeadlineError
from rnow.runtime.deadline import within

_LOG = logging.getLogger(__name__)
_START_TIMEOUT_S = 30.0
_SLACK_S = 15.0  # for a driver that is slow to say that the start took too long
_MAX_QUOTED_LINES = 5
_CLOSE_TIMEOUT_S = 5.0
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


class ChromiumFailedError(Exception):
    """The browser did not start, or died. The message is for a log, not for the model."""


class Chromium:
    """One browser process and its driver; `visit` may be called many times at once."""

    def __init__(
        self, settings: BrowserSettings, proxy: ForwardProxy, drivers: Drivers, *, sandbox: bool
    ) -> None:
        assert settings.executable is not None
        self.has_sandbox = sandbox  # until it has been refused
        self._settings = settings
        self._proxy = proxy
        self._drivers = drivers
        self._executable = Path(settings.executable)
        self._driver: Playwright | None = None
        self._browser: Browser | None = None
        self._contexts: dict[Lease, BrowserContext] = {}  # of the tabs that are open
        self._making_tab = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()  # tabs that are being closed
        here = tempfile.gettempdir()
        self._home = tempfile.TemporaryDirectory(
            prefix="rnow-chromium-",
            dir=here if len(here) <= _MAX_TMP_CHARS else "/tmp",
            ignore_cleanup_errors=True,
        )

    @property
    def is_alive(self) -> bool:
        return self._browser is not None and self._browser.is_connected()

    async def start(self) -> None:
        """Start the process, once. Must not be cancelled. Raises ChromiumFailedError."""
        for name in _LOOSENING:
            os.environ.pop(name, None)
        try:
            self._driver = await self._drivers.start()
            self._browser = await self._launch(self._driver)
        except DeadlineError as error:
            raise ChromiumFailedError(str(error)) from error
        finally:
            if self._browser is None:
                await self.aclose()

    async def visit(self, visit: Visit, lease: Lease) -> None:
        """Load a page in the lease's tab; `visit` tells more.

        Raises playwright's errors. Must not be cancelled: close the visit, and end the tab.
        """
        context = self._contexts.get(lease)
        if context is not None:
            await visit.load(context.pages[0])
            return
        # One new tab at a time: those whose visits are given up meanwhile are never made.
        async with self._making_tab:
            if visit.is_closed:
                return
            tab = await self._open_tab(lease)
        if not visit.is_closed:
            await visit.load(tab)

    async def end_tab(self, lease: Lease) -> None:
        """Close the lease's tab, if it has one. A browser that is busy does it after this returns.

        Never cancelled: the driver is asked in several steps, and the last one closes the tab.
        """
        context = self._contexts.pop(lease, None)
        if context is None:
            return
        ending = asyncio.create_task(context.close(), name="end of a tab")
        self._ending.add(ending)
        ending.add_done_callback(self._note_end)
        await asyncio.wait({ending}, timeout=_CLOSE_TIMEOUT_S)

    async def aclose(self) -> None:
        """End the process, however it is, and with it its tabs."""
        browser, self._browser = self._browser, None
        driver, self._driver = self._driver, None
        self._contexts.clear()
        # A driver that is stopped takes its browser with it, also one that does not close.
        closings: list[Callable[[], Awaitable[None]]] = []
        if browser is not None:
            closings.append(browser.close)
        if driver is not None:
            closings.append(driver.stop)
        for close in closings:
            with suppress(Error, TimeoutError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await close()
        for ending in list(self._ending):
            ending.cancel()
        await asyncio.to_thread(self._home.cleanup)

    async def _open_tab(self, lease: Lease) -> Page:
        assert self._browser is not None
        context = await self._browser.new_context(
            user_agent=self._settings.user_agent,
            accept_downloads=False,
            proxy={
                "server": f"http://127.0.0.1:{self._proxy.port}",
                "username": lease.username,
                "password": lease.password,
            },
        )
        self._contexts[lease] = context
        return await context.new_page()

    def _note_end(self, ending: "asyncio.Task[None]") -> None:
        self._ending.discard(ending)
        # The browser may have ended meanwhile, and its tabs with it.
        if not ending.cancelled() and (error := ending.exception()) is not None:
            _LOG.debug("a tab was closed already: %r", error)

    async def _launch(self, driver: Playwright) -> Browser:
        """Launch with a sandbox; without one where that is refused."""
        try:
            return await self._launch_once(driver)
        except Error as error:
            text = str(error).lower()
            if not self.has_sandbox or not any(sign in text for sign in _NO_SANDBOX_SIGNS):
                first, *rest = str(error).splitlines()
                printed = [line for line in rest if "[err]" in line][:_MAX_QUOTED_LINES]
                said = "\n".join([f"{self._executable} did not start: {first}", *printed])
                raise ChromiumFailedError(said) from error
        _LOG.warning(
            "Chromium runs without its sandbox, which it was refused: root never has one, nor have "
            "many containers"
        )
        self.has_sandbox = False
        return await self._launch(driver)

    async def _launch_once(self, driver: Playwright) -> Browser:
        # The keys of the project's tools are none of its business, nor is the user's profile.
        kept = ("PATH", "LANG", "LD_LIBRARY_PATH", "TZ")
        environment: dict[str, str | float | bool] = {
            name: os.environ[name] for name in kept if name in os.environ
        }
        environment |= {"HOME": self._home.name, "TMPDIR": self._home.name}
        async with within(_START_TIMEOUT_S + _SLACK_S, "browser: start of Chromium"):
            return await driver.chromium.launch(
                headless=True,
                executable_path=self._executable,
                chromium_sandbox=self.has_sandbox,
                # A tab's own setting leaves the script of a service worker out.
                args=[*_FLAGS, f"--user-agent={self._settings.user_agent}"],
                proxy={"server": f"http://127.0.0.1:{self._proxy.port}", "bypass": "<-loopback>"},
                timeout=1_000 * _START_TIMEOUT_S,
                env=environment,
                handle_sigint=False,
                handle_sigterm=False,
                handle_sighup=False,
            )
