"""One page in one tab: which documents it may load, and its DOM once its scripts are done.

    opened ──▶ go ──▶ every document that the tab wants is paused, checked, let go or refused
                                 │
                                 ▼
               its scripts have finished, or had their time ──▶ the DOM is copied, the tab wiped

The proxy decides which addresses can be reached at all. Here the page itself is held to what plain
HTTP is held to: every hop of a redirect, by whatever means, stays on hosts that may be read; no
refusal of a site is got around; nothing is downloaded.
"""

import asyncio
import base64
import json
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from playwright.async_api import CDPSession, Error, Page, Request
from yarl import URL

from rnow.browser.chromium.proxy import Lease
from rnow.browser.errors import BrowseError, NotRenderedError
from rnow.browser.kind import is_html
from rnow.browser.rules.guard import check_url
from rnow.browser.rules.hosts import HostRules
from rnow.browser.rules.politeness import Pacer
from rnow.browser.rules.refusals import (
    REDIRECTS,
    blocked_by_site,
    is_block_page,
    refusal_of_status,
    too_large,
    too_many_redirects,
    unreachable,
)
from rnow.browser.settings import BrowserSettings
from rnow.browser.source import RawPage

_NUM_CAPTURES = 5  # a page that goes on to another takes the first attempts with it
_REFUSED = {"errorReason": "Aborted"}  # the tab stays where it is
_ABORTED = "net::ERR_ABORTED"  # by us, or by the page itself, which has gone on to another
# In a world of its own, where the page's scripts have changed no function.
_COPY = "JSON.stringify([location.href, document.documentElement.outerHTML.slice(0, %d)])"
_IS_STILL = "!document.scripts.length && !document.querySelector('meta[http-equiv=refresh i]')"


class Visit:
    """The visit of one URL. `refused` is set as soon as there will be no page."""

    def __init__(
        self,
        url: URL,
        *,
        settings: BrowserSettings,
        hosts: HostRules,
        lease: Lease,
        pacer: Pacer,
    ) -> None:
        self.url = url  # of the document that the tab has, or is on its way to
        self.page: RawPage | None = None
        self.refusal: BrowseError | None = None
        self.refused = asyncio.Event()
        self.is_over = False  # and the tab as good as new
        self.is_closed = False
        self.tab: Page | None = None  # once there is one
        self._settings = settings
        self._hosts = hosts
        self._lease = lease
        self._pacer = pacer
        self._status = 200
        self._num_documents = 0
        self._has_document = False
        self._onward: URL | None = None  # where the last redirect leads
        self._frame = ""  # the tab's own; others are frames in its page
        self._devtools: CDPSession | None = None
        self._handling: set[asyncio.Task[None]] = set()

    async def load(self, tab: Page) -> None:
        """Load the page in a tab in which there is none; raises playwright's Error."""
        self.tab = tab
        await self._watch(tab)
        timeout_ms = 1_000 * self._settings.render_timeout_s
        await tab.goto(str(self.url), wait_until="domcontentloaded", timeout=timeout_ms)
        await self._capture(tab)

    def close(self) -> None:
        """Let nothing more begin, nor be decided; the tab is whoever gave it's to close."""
        self.is_closed = True
        for task in list(self._handling):
            task.cancel()

    async def _watch(self, tab: Page) -> None:
        """See what the tab is about to load, from now on."""
        context = tab.context
        context.on("page", self._close_other)
        tab.on("requestfailed", self._see_failure)
        self._devtools = devtools = await context.new_cdp_session(tab)
        devtools.on("Fetch.requestPaused", lambda event: self._start(self._decide(event)))
        tree = await devtools.send("Page.getFrameTree")
        self._frame = tree["frameTree"]["frame"]["id"]
        patterns = [
            {"resourceType": "Document", "requestStage": stage} for stage in ("Request", "Response")
        ]
        # A local site speaks plain HTTP, whatever its URLs say.
        patterns += [{"urlPattern": f"https://{host}*"} for host in self._settings.local_sites]
        await devtools.send("Fetch.enable", {"patterns": patterns})

    async def _capture(self, tab: Page) -> None:
        """Copy the DOM once the page is done, and end the page: nothing of it runs on."""
        for _ in range(_NUM_CAPTURES):
            if not await self._evaluate(_IS_STILL):
                with suppress(Error):
                    await tab.wait_for_load_state(
                        "networkidle", timeout=1_000 * self._settings.settle_timeout_s
                    )
            copied = await self._evaluate(_COPY % self._settings.max_body_bytes)
            if copied is not None:
                break
        if self.refusal is None and copied is not None:
            self._take(*json.loads(copied))
        if self.page is not None:
            await self._wipe(tab)

    async def _wipe(self, tab: Page) -> None:
        """Leave the tab as it was found: on no page, with nothing kept of any site."""
        assert self._devtools is not None
        with suppress(Error):
            await self._evaluate("window.name = ''; sessionStorage.clear()")
            await self._devtools.send("Fetch.disable")
            await tab.goto("about:blank")
            tab.context.remove_listener("page", self._close_other)
            tab.remove_listener("requestfailed", self._see_failure)
            await tab.context.clear_cookies()
            for origin in sorted(self._lease.origins):  # a late request may add to them meanwhile
                for scheme in ("http", "https"):
                    await self._devtools.send(
                        "Storage.clearDataForOrigin",
                        {"origin": f"{scheme}://{origin}", "storageTypes": "all"},
                    )
            await self._devtools.send("Network.clearBrowserCache")
            await self._devtools.detach()
            self.is_over = True

    def _close_other(self, other: Page) -> None:
        self._start(other.close())

    def _see_failure(self, request: Request) -> None:
        """Give up on a document that broke off: Chromium would wait for the rest of it for ever."""
        assert self.tab is not None
        is_page = request.is_navigation_request() and request.frame == self.tab.main_frame
        is_waited_for = is_page and self._has_document and self.page is None
        if is_waited_for and request.failure != _ABORTED:
            known = self._lease.refusals.get(self.url.raw_host or "")
            self._refuse(known or (too_large() if self._lease.is_exhausted else unreachable()))

    def _take(self, location: str, html: str) -> None:
        try:
            checked = self._hosts.check(check_url(location, ports=self._settings.ports))
        except BrowseError as error:
            self._refuse(error)
            return
        url = self._as_written(checked, self.url)
        body = html.encode(errors="replace")[: self._settings.max_body_bytes]
        page = _html_page(url, self._status, body)
        if is_block_page(page):
            self._refuse(blocked_by_site())
        else:
            self.page = page

    async def _evaluate(self, expression: str) -> Any:
        """Return the value of an expression, None where the page has gone in between."""
        assert self._devtools is not None
        with suppress(Error):
            world = await self._devtools.send("Page.createIsolatedWorld", {"frameId": self._frame})
            answer = await self._devtools.send(
                "Runtime.evaluate",
                {
                    "contextId": world["executionContextId"],
                    "expression": expression,
                    "returnByValue": True,
                },
            )
            return answer["result"].get("value")
        return None

    async def _decide(self, event: dict[str, Any]) -> None:
        """Let a paused request go on, or not."""
        assert self._devtools is not None
        command, parameters = await self._decision(event)
        with suppress(Error):  # the tab is gone, and with it the question
            await self._devtools.send(
                f"Fetch.{command}", {"requestId": event["requestId"], **parameters}
            )

    async def _decision(self, event: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        is_page = event["frameId"] == self._frame and event["resourceType"] == "Document"
        if "responseErrorReason" in event:
            return "continueRequest", {}
        if "responseStatusCode" in event:
            is_welcome = not is_page or await self._accept(event)
            return ("continueRequest", {}) if is_welcome else ("failRequest", _REFUSED)
        url = event["request"]["url"]
        if is_page:
            if not self._may_go(url):
                return "failRequest", _REFUSED
            if self._hosts.local_port(self.url.raw_host) is None:
                await asyncio.sleep(self._pacer.depart(self.url.raw_host or ""))
        scheme, _, rest = url.partition("://")
        if scheme == "https" and self._hosts.local_port(URL(url).raw_host) is not None:
            return "continueRequest", {"url": f"http://{rest}"}
        return "continueRequest", {}

    def _may_go(self, location: str) -> bool:
        """Check where the tab is going: the URL that was asked for, or what it leads to."""
        self._num_documents += 1
        try:
            url = self._hosts.check(check_url(location, ports=self._settings.ports))
            if self._num_documents > self._settings.max_redirects + 1:
                raise too_many_redirects()
        except BrowseError as error:
            self._refuse(error)
            return False
        self.url = self._as_written(url, self._onward)
        return True

    def _as_written(self, url: URL, written: URL | None) -> URL:
        """Return `written` for the URL that was really asked of a local site, over plain HTTP."""
        if written is None or self._hosts.local_port(url.raw_host) is None:
            return url
        is_same = _without_scheme(written) == _without_scheme(url)
        return written.with_fragment(None) if is_same else url

    async def _accept(self, event: dict[str, Any]) -> bool:
        """Look at the head of an answer, before anything in it can run; return whether to go on."""
        status, heads = event["responseStatusCode"], event["responseHeaders"]
        location = _header(heads, "location")
        if status in REDIRECTS and location is not None:
            with suppress(ValueError):  # a broken one leads nowhere
                self._onward = self.url.join(URL(location))
            return True
        is_html = _is_html(heads)
        if self._has_document and not is_html:
            return False  # a page that starts a download stays
        self._status = status
        host = self.url.raw_host or ""
        refusal = self._lease.refusals.get(host)
        if refusal is None and not 200 <= status < 300:
            self._pacer.hold_off(host, _header(heads, "retry-after"))
            refusal = refusal_of_status(status, await self._body_of_refusal(event))
        if refusal is None and not is_html:
            refusal = NotRenderedError("unsupported_type", "this is not a page of text.")
        if refusal is not None:
            self._refuse(refusal)
        self._has_document = refusal is None
        return self._has_document

    async def _body_of_refusal(self, event: dict[str, Any]) -> RawPage:
        assert self._devtools is not None
        body = b""
        with suppress(Error):
            answer = await self._devtools.send(
                "Fetch.getResponseBody", {"requestId": event["requestId"]}
            )
            is_coded = answer["base64Encoded"]
            body = base64.b64decode(answer["body"]) if is_coded else answer["body"].encode()
        return _html_page(self.url, self._status, body)

    def _refuse(self, refusal: BrowseError) -> None:
        self.refusal = self.refusal or refusal
        self.refused.set()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        if self.is_closed:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work, name=f"visit {self.url}")
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)


def _without_scheme(url: URL) -> str:
    return str(url.with_fragment(None)).partition("://")[2]


def _is_html(heads: list[dict[str, str]]) -> bool:
    disposition = _header(heads, "content-disposition") or ""
    kind = (_header(heads, "content-type") or "text/html").partition(";")[0]
    return is_html(kind.strip().lower()) and not disposition.lower().startswith("attachment")


def _header(heads: list[dict[str, str]], name: str) -> str | None:
    return next((head["value"] for head in heads if head["name"].lower() == name), None)


def _html_page(url: URL, status: int, body: bytes) -> RawPage:
    return RawPage(
        url=url,
        status=status,
        content_type="text/html",
        charset="utf-8",
        body=body,
        source="browser",
    )
