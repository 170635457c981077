"""Pages by Chromium: waiting for a tab, watching the clock, and leaving no tab open."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp.abc import AbstractResolver
from yarl import URL

from rnow.browser.chromium.proxy import ForwardProxy, Lease
from rnow.browser.errors import BrowseError, NotRenderedError
from rnow.browser.rules.guard import MayDial, is_public
from rnow.browser.rules.hosts import AllowedUrl, HostRules
from rnow.browser.rules.politeness import Pacer
from rnow.browser.rules.refusals import too_large, unreachable
from rnow.browser.settings import BrowserSettings
from rnow.browser.source import RawPage
from rnow.core.counts import count
from rnow.runtime.side_by_side import take_note

if TYPE_CHECKING:
    from rnow.browser.chromium.driver import Drivers
    from rnow.browser.chromium.process import Chromium
    from rnow.browser.chromium.visit import Visit

_LOG = logging.getLogger(__name__)
_END_TIMEOUT_S = 5.0  # for a visit whose tab is closed; a browser that takes longer is stuck
_OPEN_TIMEOUT_S = 30.0  # for a tab that is still being made; a busy machine takes long
_KEEP_TAB_S = 2.0  # without a page
_MAX_TAB_VISITS = 20  # playwright remembers all requests of a context until that is closed
_START_AGAIN_S = 60.0  # after a start that failed

T = TypeVar("T")


class ChromiumSource:
    """A PageSource over the Chromium of `settings.executable`, started by the first page.

    source = ChromiumSource(settings); page = await source.fetch(URL("https://site.test/"))

    `check_robots` raises BrowseError for pages of the open web that may not be asked for.
    `resolver` and `may_dial` are where a test puts its own network.
    """

    def __init__(
        self,
        settings: BrowserSettings,
        *,
        check_robots: Callable[[AllowedUrl], Awaitable[None]],
        pacer: Pacer | None = None,
        resolver: AbstractResolver | None = None,
        may_dial: MayDial = lambda address, port: is_public(address),
    ) -> None:
        self._settings = settings
        self._hosts = HostRules(settings)
        self._pacer = pacer or Pacer(settings)
        self._check_robots = check_robots
        self._proxy = ForwardProxy(settings, resolver=resolver, may_dial=may_dial)
        self._tabs = asyncio.Semaphore(settings.num_tabs)
        self._drivers: Drivers | None = None  # once one is needed
        self._chromium: Chromium | None = None  # the one that runs, or ran last
        self._starting = asyncio.Lock()
        self._no_start_before = float("-inf")  # by time.monotonic
        self._working: set[asyncio.Task[Any]] = set()
        self._idle: dict[Lease, asyncio.TimerHandle] = {}  # whose tabs are wiped, and their end

    async def fetch(self, url: AllowedUrl) -> RawPage:
        """Return the page as it is once its scripts have run, or raise BrowseError."""
        if self._hosts.local_port(url.raw_host) is None:
            await self._check_robots(url)
            await asyncio.sleep(self._pacer.reserve(url.raw_host or ""))
        async with self._tab():
            chromium = await self._started()
            page = await self._read(url, chromium)
            if page is None:  # the browser died, perhaps of another page
                page = await self._read(url, await self._started())
            if page is None:
                raise BrowseError("unreadable", "this page ends the browser that reads it.")
            return page

    async def aclose(self) -> None:
        for lease in list(self._idle):
            self._expire(lease)
        if self._working:
            await asyncio.wait(self._working)
        if self._chromium is not None:
            await self._chromium.aclose()
        if self._drivers is not None:
            await self._drivers.aclose()
        await self._proxy.aclose()

    @asynccontextmanager
    async def _tab(self) -> AsyncIterator[None]:
        """Wait for one of the tabs."""
        try:
            async with asyncio.timeout(self._settings.tab_timeout_s):
                await self._tabs.acquire()
        except TimeoutError as error:
            raise BrowseError("timeout", "the browser is busy; try again later.") from error
        try:
            yield
        finally:
            self._tabs.release()

    async def _started(self) -> "Chromium":
        """Return the browser, running; raise NotRenderedError where it does not start."""
        from rnow.browser.chromium.process import ChromiumFailedError

        if time.monotonic() >= self._no_start_before:
            try:
                return await self._uncancelled(self._ensure())
            except ChromiumFailedError as error:
                _LOG.warning("%s", error)
                self._no_start_before = time.monotonic() + _START_AGAIN_S
        raise NotRenderedError("unreadable", "the browser that this page needs does not start.")

    async def _ensure(self) -> "Chromium":
        """Start a browser unless one is alive. Counts browser/restarts where another ran before."""
        from rnow.browser.chromium.driver import Drivers
        from rnow.browser.chromium.process import Chromium

        async with self._starting:
            last = self._chromium
            if last is not None and last.is_alive:
                return last
            if not self._proxy.port:
                await self._proxy.start()
            if last is not None:
                _LOG.warning("Chromium has ended and is started again")
                await last.aclose()
            if self._drivers is None:
                self._drivers = Drivers()
            has_sandbox = last is None or last.has_sandbox
            chromium = Chromium(self._settings, self._proxy, self._drivers, sandbox=has_sandbox)
            await chromium.start()
            self._chromium = chromium
            if last is not None:
                count("browser/restarts")
            return chromium

    async def _read(self, url: URL, chromium: "Chromium") -> RawPage | None:
        """Visit a page; None where the browser died of it."""
        from rnow.browser.chromium.visit import Visit

        lease = await self._lease()
        visit = Visit(
            url,
            settings=self._settings,
            hosts=self._hosts,
            lease=lease,
            pacer=self._pacer,
        )
        crawling = asyncio.create_task(chromium.visit(visit, lease), name=f"visit {url}")
        crawling.add_done_callback(_note)
        refused = asyncio.create_task(visit.refused.wait())
        try:
            ended, _ = await asyncio.wait(
                {crawling, refused},
                timeout=self._settings.render_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            refused.cancel()
            await self._uncancelled(self._end(visit, crawling, lease, chromium))
        if visit.refusal is not None:
            raise visit.refusal
        if visit.page is not None:
            return visit.page
        if not ended:
            raise BrowseError("timeout", "the page was not ready in time.")
        error = crawling.exception()
        if not chromium.is_alive:
            return None
        raise _explain(error, visit, lease) from error

    async def _lease(self) -> Lease:
        """Return the right to use the proxy; with a tab that is open, if there is one."""
        if not self._idle:
            return self._proxy.lend()
        lease, closing = self._idle.popitem()
        closing.cancel()
        try:
            await lease.renew()
        except BaseException:  # given up just now; nobody else knows of this tab any more
            self._work(self._close(lease))
            raise
        return lease

    async def _end(
        self,
        visit: "Visit",
        crawling: "asyncio.Task[None]",
        lease: Lease,
        chromium: "Chromium",
    ) -> None:
        """Keep a tab whose visit is over, close any other; where it stays open, end the browser."""
        visit.close()
        if not visit.is_over:
            await chromium.end_tab(lease)
        limit_s = _OPEN_TIMEOUT_S if visit.tab is None else _END_TIMEOUT_S
        done, _ = await asyncio.wait({crawling}, timeout=limit_s)
        went_well = bool(done) and visit.is_over and crawling.exception() is None
        if went_well and lease.num_visits < _MAX_TAB_VISITS:
            loop = asyncio.get_running_loop()
            self._idle[lease] = loop.call_later(_KEEP_TAB_S, self._expire, lease)
            return
        await chromium.end_tab(lease)
        await self._proxy.take_back(lease)
        if not done:
            _LOG.warning("Chromium does not close the tab of %s and is ended", visit.url)
            await chromium.aclose()
            await asyncio.wait({crawling}, timeout=_END_TIMEOUT_S)

    def _expire(self, lease: Lease) -> None:
        """Close a tab that nobody has needed for a while."""
        self._idle.pop(lease).cancel()
        self._work(self._close(lease))

    async def _close(self, lease: Lease) -> None:
        if self._chromium is not None:
            await self._chromium.end_tab(lease)
        await self._proxy.take_back(lease)

    def _work(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        task.add_done_callback(take_note)
        return task

    async def _uncancelled(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work that goes on to its end also where nobody waits any more."""
        return await asyncio.shield(self._work(work))


def _note(crawling: "asyncio.Task[None]") -> None:
    """Log how a visit failed; asking for it keeps asyncio quiet where nobody waits any more."""
    if not crawling.cancelled() and (error := crawling.exception()) is not None:
        _LOG.debug("%s: %r", crawling.get_name(), error)


def _explain(error: BaseException | None, visit: "Visit", lease: Lease) -> BrowseError:
    """Say why there is no page, in words that give nothing of this machine away."""
    text = str(error)
    if (unreached := lease.refusals.get(visit.url.raw_host or "")) is not None:
        return unreached
    if lease.is_exhausted:
        return too_large()
    if "ERR_CERT" in text or "ERR_SSL" in text:
        return BrowseError("unreachable", "the site has no valid certificate.")
    if "Timeout" in text:
        return BrowseError("timeout", "the page was not ready in time.")
    if "net::ERR" in text:
        return unreachable()
    return BrowseError("unreadable", "this page could not be read by the browser.")
