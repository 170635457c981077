"""Pages by plain HTTP: guarded, bounded in time and size, polite.

Every hop of a redirect goes through the same checks as a URL that the model wrote. Nothing is kept
between requests: no cookies, no proxy of the environment, no credentials.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from rnow.browser.body import ACCEPTED_ENCODING, read_body
from rnow.browser.errors import BrowseError
from rnow.browser.kind import kind_of, may_be_text, named_kind, sent_on
from rnow.browser.rules.guard import (
    BlockedAddressError,
    GuardedResolver,
    MayDial,
    check_url,
    guarded_socket,
    is_public,
)
from rnow.browser.rules.hosts import AllowedUrl, HostRules
from rnow.browser.rules.politeness import Pacer
from rnow.browser.rules.refusals import (
    REDIRECTS,
    blocked_by_site,
    is_block_page,
    no_text,
    refusal_of_status,
    status_error,
    too_many_redirects,
    unreachable,
)
from rnow.browser.rules.robots import MAX_ROBOTS_BYTES, Robots
from rnow.browser.settings import BrowserSettings
from rnow.browser.source import RawPage

_MAX_BLOCK_PAGE_BYTES = 200_000
_ACCEPT = "text/html,application/xhtml+xml,application/json;q=0.9,text/plain;q=0.8,*/*;q=0.1"


class HttpSource:
    """A PageSource over aiohttp.

    source = HttpSource(settings); page = await source.fetch(URL("https://site.test/"))

    `resolver` and `may_dial` are where a test puts its own network; what they let pass is dialled.
    """

    def __init__(
        self,
        settings: BrowserSettings,
        *,
        resolver: AbstractResolver | None = None,
        may_dial: MayDial = lambda address, port: is_public(address),
        pacer: Pacer | None = None,
    ) -> None:
        self._settings = settings
        self._hosts = HostRules(settings)
        self._pacer = pacer or Pacer(settings)
        self._robots = Robots()
        self._public = self._session(
            aiohttp.TCPConnector(
                resolver=GuardedResolver(resolver or aiohttp.ThreadedResolver(), may_dial=may_dial),
                socket_factory=guarded_socket(may_dial),
                use_dns_cache=False,  # each connection dials the addresses that were checked for it
            )
        )
        # Only for local sites, whose address and port are never taken from a URL.
        self._local = self._session(aiohttp.TCPConnector())

    async def fetch(self, url: AllowedUrl, *, is_data: bool = False) -> RawPage:
        """Return the page, `max_redirects` redirects away at most, or raise BrowseError.

        Data, which a site made for programs, may be of any type, and robots.txt is not asked.
        """
        async with self._in_time() as clock:
            for _ in range(self._settings.max_redirects + 1):
                answer = await self._ask(url, clock, is_data=is_data)
                if isinstance(answer, RawPage):
                    return answer
                url = answer
            raise too_many_redirects()

    async def check_robots(self, url: AllowedUrl) -> None:
        """Raise BrowseError where there is no contact, or the site closes this page to programs."""
        async with self._in_time() as clock:
            await self._ask_robots(url, clock)

    async def aclose(self) -> None:
        await self._public.close()
        await self._local.close()

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[asyncio.Timeout]:
        """Limit the block to fetch_timeout_s; what goes wrong in it becomes a BrowseError."""
        try:
            async with asyncio.timeout(self._settings.fetch_timeout_s) as clock:
                yield clock
        except TimeoutError as error:
            raise BrowseError("timeout", "the site did not answer in time.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _explain(error) from error

    async def _ask(
        self, url: AllowedUrl, clock: asyncio.Timeout, *, is_data: bool
    ) -> RawPage | AllowedUrl:
        """Send one request; return the page, or where the site sends the reader."""
        local_port = self._hosts.local_port(url.raw_host)
        request: AbstractAsyncContextManager[aiohttp.ClientResponse]
        if local_port is not None:
            at_home = url.with_scheme("http").with_host("127.0.0.1").with_port(local_port)
            host = {"Host": url.raw_host or ""}
            request = self._local.get(at_home, headers=host, allow_redirects=False)
        else:
            if not is_data:
                await self._ask_robots(url, clock)
            request = await self._ask_public(url, clock)
        async with request as response:
            return await self._take(response, url, is_data=is_data)

    async def _ask_robots(self, url: AllowedUrl, clock: asyncio.Timeout) -> None:
        """Raise BrowseError where the site closes this page to programs."""
        self._require_contact()
        delay_s = await self._robots.check(
            url,
            lambda robots: self._read_robots(AllowedUrl(robots), clock),  # on the same host
        )
        self._pacer.slow_down(url.raw_host or "", delay_s)

    async def _ask_public(
        self, url: AllowedUrl, clock: asyncio.Timeout
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Return the request of one hop in the open web, once it is its turn."""
        self._require_contact()
        await self._wait_for_slot(url.raw_host or "", clock)
        return self._public.get(url, allow_redirects=False)

    async def _read_robots(self, url: AllowedUrl, clock: asyncio.Timeout) -> str:
        """Return a site's robots.txt, "" where it has none; raise BrowseError where it fails."""
        for _ in range(self._settings.max_redirects + 1):
            async with await self._ask_public(url, clock) as response:
                location = response.headers.get("Location")
                if response.status in REDIRECTS and location is not None:
                    url = self._redirected(url, location)
                    continue
                if response.status == 429 or response.status >= 500:
                    self._hold_off(response, url)
                    raise status_error(response.status)
                if not 200 <= response.status < 300:
                    return ""
                body, _ = await read_body(response, MAX_ROBOTS_BYTES)
                return _raw_page(response, url, body).text()
        raise too_many_redirects()

    def _require_contact(self) -> None:
        if self._settings.contact is None:
            sentence = "only local sites can be read until browser.contact is set."
            raise BrowseError("host_not_allowed", sentence)

    async def _wait_for_slot(self, host: str, clock: asyncio.Timeout) -> None:
        for delay_of in (self._pacer.reserve, self._pacer.depart):
            delay_s = delay_of(host)
            deadline = clock.when()
            assert deadline is not None
            clock.reschedule(deadline + delay_s)  # this waiting is ours, not the site's
            await asyncio.sleep(delay_s)

    async def _take(
        self, response: aiohttp.ClientResponse, url: URL, *, is_data: bool
    ) -> RawPage | AllowedUrl:
        location = response.headers.get("Location")
        if response.status in REDIRECTS and location is not None:
            return self._redirected(url, location)
        if not 200 <= response.status < 300:
            raise await self._refusal(response, url)
        page = _raw_page(response, url, b"")
        if not is_data and not may_be_text(page.content_type):
            raise no_text()
        body, is_whole = await read_body(response, self._settings.max_body_bytes)
        kind = page.content_type if is_data else kind_of(page.content_type, body)
        if kind is None:
            raise no_text()
        if not is_whole:
            limit_mb = self._settings.max_body_bytes / 1_000_000
            sentence = f"this page is larger than {limit_mb:g} MB."
            raise BrowseError("too_large", sentence, is_lasting=True)
        page = replace(page, content_type=kind, body=body)
        if is_block_page(page):
            raise blocked_by_site()
        target = self._refreshed(page, response) if page.is_html and not is_data else None
        return page if target is None else self._redirected(url, target)

    def _refreshed(self, page: RawPage, response: aiohttp.ClientResponse) -> str | None:
        return sent_on(page.text(), response.headers.get("Refresh"), url=str(page.url))

    def _redirected(self, url: URL, location: str) -> AllowedUrl:
        """Return where a site sends its reader, checked like the URL that was asked for."""
        try:
            target = url.join(URL(location.strip()))
        except ValueError:
            raise BrowseError("bad_url", "the site sends the reader to a broken URL.") from None
        return self._hosts.check(check_url(str(target), ports=self._settings.ports))

    async def _refusal(self, response: aiohttp.ClientResponse, url: URL) -> BrowseError:
        """Return what the model is told of an answer that is no page."""
        self._hold_off(response, url)
        page = None
        if response.status in (403, 503):
            body, _ = await read_body(response, _MAX_BLOCK_PAGE_BYTES)
            page = _raw_page(response, url, body)
        return refusal_of_status(response.status, page)

    def _hold_off(self, response: aiohttp.ClientResponse, url: URL) -> None:
        self._pacer.hold_off(url.raw_host or "", response.headers.get("Retry-After"))

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,  # read_body does it, and stops in time
            headers={
                "User-Agent": self._settings.user_agent,
                "Accept": _ACCEPT,
                "Accept-Encoding": ACCEPTED_ENCODING,
                "Accept-Language": "en",
            },
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self._settings.connect_timeout_s
            ),
        )


def _raw_page(response: aiohttp.ClientResponse, url: URL, body: bytes) -> RawPage:
    return RawPage(
        url=url,
        status=response.status,
        content_type=named_kind(response.headers.get("Content-Type", "")),
        charset=response.charset,
        body=body,
    )


def _explain(error: Exception) -> BrowseError:
    """Say what a failed connection was, in words that give nothing of this machine away."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, BlockedAddressError):
        return BrowseError("blocked_address", "this address is not on the public internet.")
    if isinstance(error, aiohttp.InvalidURL):
        return BrowseError("bad_url", "this is not a well-formed URL.")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return BrowseError("unreachable", "there is no such host.")
    if isinstance(error, aiohttp.ClientSSLError):
        return BrowseError("unreachable", "the site has no valid certificate.")
    return unreachable()
