"""rnow.browser against real servers on loopback.

"pub" is a server that may be read; "inner" counts connections and must see none.
"""

import asyncio
import gzip
import ssl
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from socket import AF_UNSPEC, AddressFamily

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

import rnow
from rnow import browser
from rnow.browser import BrowserSettings, shared
from rnow.browser.browser import Browser
from rnow.browser.guard import is_public
from rnow.browser.http import HttpSource
from rnow.browser.sites import LocalSites
from rnow.errors import ConfigError
from rnow.tools.counts import collecting

BLOCKED = "ERROR blocked_address: this address is not on the public internet."
NOT_ALLOWED = "ERROR host_not_allowed: this host is not on the list of sites that may be read."
TIMEOUT = "ERROR timeout: the site did not answer in time."

Handler = Callable[[web.Request], "web.StreamResponse | AsyncIterator[bytes]"]
Answers = list[tuple[str, int]]


class Pub:
    """A site whose pages are coroutines by path; counts requests."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[web.BaseRequest] = []
        self.pages: dict[str, Callable[[web.BaseRequest], web.StreamResponse]] = {}
        self.num_bytes_sent = 0

    def page(self, path: str, html: str, **kwargs: object) -> None:
        self.pages[path] = lambda _: web.Response(
            text=html, **{"content_type": "text/html", **kwargs}
        )

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        if request.path == "/endless":
            return await self.stream(request, b"x" * 65_536, wait_s=0)
        if request.path == "/drip":
            return await self.stream(request, b"x", wait_s=0.02)
        if request.path not in self.pages:
            return web.Response(status=404, text="no such page")
        return self.pages[request.path](request)

    async def stream(
        self, request: web.BaseRequest, chunk: bytes, *, wait_s: float
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        while self.num_bytes_sent < 50_000_000:
            await response.write(chunk)
            self.num_bytes_sent += len(chunk)
            await asyncio.sleep(wait_s)
        return response


class Inner:
    """A server that nobody may reach, on 127.0.0.2, 127.0.0.1 and, where there is one, ::1."""

    def __init__(self) -> None:
        self.port = 0
        self.num_hits = 0

    async def answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_hits += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>secret")
        writer.close()


class Names(AbstractResolver):
    """A resolver of made-up names: each call takes a name's next answer, the last one for ever."""

    def __init__(self, answers: dict[str, list[Answers]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: AddressFamily = AF_UNSPEC
    ) -> list[ResolveResult]:
        self.asked.append(host)
        if host not in self.answers:
            raise OSError("no such name, says 127.0.0.53")
        left = self.answers[host]
        answer = left.pop(0) if len(left) > 1 else left[0]
        return [
            ResolveResult(hostname=host, host=a, port=p, family=family, proto=0, flags=0)
            for a, p in answer
        ]

    async def close(self) -> None:
        pass


@pytest.fixture
async def pub() -> AsyncIterator[Pub]:
    site = Pub()
    runner = web.ServerRunner(web.Server(site.answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.port = runner.addresses[0][1]
    yield site
    await runner.cleanup()


@pytest.fixture
async def inner() -> AsyncIterator[Inner]:
    server = Inner()
    async with AsyncExitStack() as stack:
        for address in ("127.0.0.2", "127.0.0.1", "::1"):
            try:
                listening = await asyncio.start_server(server.answer, address, server.port)
            except OSError:  # no IPv6 here; or only 127.0.0.1 (macOS): then that one is hit
                continue
            await stack.enter_async_context(listening)
            server.port = listening.sockets[0].getsockname()[1]
        yield server


@asynccontextmanager
async def open_browser(
    pub: Pub,
    inner: Inner | None = None,
    *,
    names: dict[str, list[Answers]] | None = None,
    may_dial: Callable[[str, int], bool] | None = None,
    **settings: object,
) -> AsyncIterator[Browser]:
    """A browser for which pub is a local site, and inner's port a usual one."""
    ports = (80, 443) if inner is None else (80, 443, inner.port)
    chosen: dict[str, object] = {
        "allow_hosts": ("*",),
        "contact": "me@example.org",
        "local_sites": {"pub.test": pub.port},
        "ports": ports,
    }
    rules = BrowserSettings(**(chosen | settings))  # type: ignore[arg-type]  # keywords of one test
    source = HttpSource(
        rules,
        resolver=None if names is None else Names(names),
        may_dial=may_dial or (lambda address, port: is_public(address)),
    )
    async with Browser(rules, source=source) as opened:
        yield opened


async def read(opened: Browser, url: str, page: int = 1) -> str:
    return (await opened.read(url, page)).text


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_local_site_is_read_by_plain_http_whatever_the_scheme(
    pub: Pub, scheme: str
) -> None:
    pub.page("/study/NCT1", "<h1>NCT1</h1><p>Zürich &lt;|im_end|&gt;</p>")
    async with open_browser(pub, allow_hosts=(), contact=None) as opened:
        answer = await opened.read(f"{scheme}://PUB.test/study/NCT1?x=1#y")
    assert answer.counter == "browser/fetched"
    assert answer.text == (
        f"{scheme}://pub.test/study/NCT1?x=1 (status 200, page 1 of 1)\n\n# NCT1\nZürich <|im_end|>"
    )
    (request,) = pub.requests
    assert request.path_qs == "/study/NCT1?x=1"
    assert request.headers["Host"] == "pub.test"
    assert request.headers["User-Agent"] == f"rnow/{rnow.__version__}"


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.2", "127.0.0.1", "localhost", "LOCALHOST.", "[::1]", "[::ffff:7f00:2]"),
        *("[::ffff:127.0.0.2]", "0x7f000002", "2130706434", "127.1", "0177.0.0.2", "１２７.0.0.2"),
        *("169.254.169.254", "100.64.0.1", "[64:ff9b::7f00:2]", "0.0.0.0", "[::]", "127.0.0.2."),
    ],
)
async def test_an_inner_server_is_never_reached_directly(pub: Pub, inner: Inner, host: str) -> None:
    async with open_browser(pub, inner) as opened:
        for url in (f"http://{host}:{inner.port}/", f"https://{host}:{inner.port}/"):
            assert (await read(opened, url)).startswith(
                ("ERROR blocked_address: ", "ERROR bad_url: ")
            )
    assert inner.num_hits == 0


async def test_an_inner_server_would_be_reached_without_the_guard(pub: Pub, inner: Inner) -> None:
    names = {"inner.test": [[("127.0.0.2", inner.port)]]}
    async with open_browser(pub, names=names, may_dial=lambda address, port: True) as opened:
        assert (await read(opened, "http://inner.test/")).endswith("secret")
    assert inner.num_hits == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_leads_to_no_inner_server(pub: Pub, inner: Inner, status: int) -> None:
    names = {"inner.test": [[("127.0.0.2", inner.port)]]}
    targets = {
        f"http://127.0.0.2:{inner.port}/": BLOCKED,
        f"//127.0.0.2:{inner.port}/": BLOCKED,
        f"http://inner.test:{inner.port}/": BLOCKED,
        f"http://2130706434:{inner.port}/": "ERROR bad_url: this is not a well-formed host name.",
        f"http://127.0.0.1:{pub.port}/": (
            "ERROR bad_url: only the usual ports of http and https can be read."
        ),
        "file:///etc/passwd": (
            "ERROR bad_url: a URL must start with http:// or https:// and name a host."
        ),
        "http://[": "ERROR bad_url: the site sends the reader to a broken URL.",
    }
    async with open_browser(pub, inner, names=names) as opened:
        for number, (target, text) in enumerate(targets.items()):
            pub.pages[f"/{number}"] = lambda _, to=target: web.Response(
                status=status, headers={"Location": to}
            )
            assert await read(opened, f"https://pub.test/{number}") == text
    assert inner.num_hits == 0


async def test_a_redirect_leads_to_no_host_that_is_not_allowed(pub: Pub) -> None:
    pub.pages["/"] = lambda _: web.Response(status=302, headers={"Location": "https://b.test/"})
    async with open_browser(pub, allow_hosts=("a.test",)) as opened:
        assert await read(opened, "https://pub.test/") == NOT_ALLOWED


async def test_a_redirect_within_a_site_is_followed(pub: Pub) -> None:
    pub.page("/new/page", "<a href='x'>here</a>")
    pub.pages["/old"] = lambda _: web.Response(status=301, headers={"Location": "new/page?a=1"})
    async with open_browser(pub) as opened:
        assert await read(opened, "https://pub.test/old") == (
            "https://pub.test/new/page?a=1 (status 200, page 1 of 1)\n\n[here](/new/x)"
        )


async def test_a_chain_of_redirects_ends(pub: Pub) -> None:
    pub.pages["/"] = lambda _: web.Response(status=302, headers={"Location": "/"})
    async with open_browser(pub) as opened:
        assert await read(opened, "https://pub.test/") == (
            "ERROR too_many_redirects: the site sends the reader from page to page."
        )
    assert len(pub.requests) == 6


async def test_a_name_that_changes_its_address_is_refused(pub: Pub, inner: Inner) -> None:
    pub.page("/", "<p>public</p>", headers={"Connection": "close"})
    names = {"a.test": [[("127.0.0.1", pub.port)], [("127.0.0.2", inner.port)]]}
    async with open_browser(
        pub, names=names, may_dial=lambda address, port: (address, port) == ("127.0.0.1", pub.port)
    ) as opened:
        assert (await read(opened, "http://a.test/")).endswith("public")
        assert await read(opened, "http://a.test/?again") == BLOCKED
    assert inner.num_hits == 0


async def test_a_name_with_a_public_and_an_inner_address_is_refused(pub: Pub, inner: Inner) -> None:
    pub.page("/", "<p>public</p>")
    mixed = [("127.0.0.1", pub.port), ("127.0.0.2", inner.port)]
    names = {"a.test": [mixed], "b.test": [mixed[::-1]]}
    async with open_browser(
        pub, names=names, may_dial=lambda address, port: (address, port) == ("127.0.0.1", pub.port)
    ) as opened:
        assert await read(opened, "http://a.test/") == BLOCKED
        assert await read(opened, "http://b.test/") == BLOCKED
    assert (pub.requests, inner.num_hits) == ([], 0)


async def test_proxies_of_the_environment_are_not_used(
    pub: Pub, inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.2:{inner.port}")
    pub.page("/", "<p>public</p>")
    names = {"a.test": [[("127.0.0.1", pub.port)]]}
    async with open_browser(pub, names=names, may_dial=lambda address, port: True) as opened:
        assert (await read(opened, "http://a.test/")).endswith("public")
        assert (await read(opened, "http://pub.test/")).endswith("public")
    assert inner.num_hits == 0


async def test_a_host_that_is_not_on_the_list_is_not_even_looked_up(pub: Pub) -> None:
    rules = BrowserSettings(allow_hosts=("clinicaltrials.gov",), contact="me@example.org")
    names = Names({})
    async with Browser(rules, source=HttpSource(rules, resolver=names)) as opened:
        answer = await opened.read("https://evil.test/?key=sk-123")
    assert (answer.text, answer.counter) == (NOT_ALLOWED, "browser/error_host_not_allowed")
    assert names.asked == []


async def test_without_a_contact_only_local_sites_are_read(pub: Pub) -> None:
    async with open_browser(pub, contact=None, names={}) as opened:
        assert await read(opened, "https://a.test/") == (
            "ERROR host_not_allowed: only local sites can be read until browser.contact is set."
        )


async def test_sites_are_told_who_reads_them_and_no_cookie_comes_back(pub: Pub) -> None:
    pub.page("/", "<p>x</p>", headers={"Set-Cookie": "a=1"})
    names = {"a.test": [[("127.0.0.1", pub.port)]]}
    async with open_browser(pub, names=names, may_dial=lambda address, port: True) as opened:
        await opened.read("http://a.test/")
        await opened.read("http://a.test/?again")
    agents = [request.headers["User-Agent"] for request in pub.requests]
    assert agents == [f"rnow/{rnow.__version__} (+me@example.org)"] * 2
    assert not any("Cookie" in request.headers for request in pub.requests)


async def test_a_site_without_a_valid_certificate_is_not_read(pub: Pub, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=context)
    names = {"a.test": [[("127.0.0.1", server.sockets[0].getsockname()[1])]]}
    async with (
        server,
        open_browser(pub, names=names, may_dial=lambda address, port: True) as opened,
    ):
        assert await read(opened, "https://a.test/") == (
            "ERROR unreachable: the site has no valid certificate."
        )


async def test_a_body_of_50_mb_is_not_read(pub: Pub) -> None:
    async with open_browser(pub) as opened:
        assert await read(opened, "https://pub.test/endless") == (
            "ERROR too_large: this page is larger than 5 MB."
        )
    assert pub.num_bytes_sent < 15_000_000  # socket buffers included


async def test_a_gzip_bomb_stays_small_in_memory(pub: Pub) -> None:
    bomb = gzip.compress(bytes(100_000_000), compresslevel=1)
    pub.pages["/"] = lambda _: web.Response(
        body=bomb, headers={"Content-Type": "text/html", "Content-Encoding": "gzip"}
    )
    async with open_browser(pub) as opened:
        await opened.read("https://pub.test/other")  # what loading leaves behind is not the bomb's
        tracemalloc.start()
        text = await read(opened, "https://pub.test/")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert text == "ERROR too_large: this page is larger than 5 MB."
    assert peak < 25_000_000


async def test_a_page_in_gzip_is_read_and_a_broken_one_is_not(pub: Pub) -> None:
    packed = gzip.compress(b"<p>unpacked</p>" * 1_000)
    headers = {"Content-Type": "text/html", "Content-Encoding": "gzip"}
    pub.pages["/whole"] = lambda _: web.Response(body=packed, headers=headers)
    pub.pages["/cut"] = lambda _: web.Response(body=packed[:-20], headers=headers)
    pub.pages["/not"] = lambda _: web.Response(body=b"<p>plain", headers=headers)
    pub.pages["/other"] = lambda _: web.Response(
        body=b"x", headers={**headers, "Content-Encoding": "br"}
    )
    async with open_browser(pub) as opened:
        assert (await read(opened, "https://pub.test/whole")).count("unpacked") == 1_000
        for path in ("cut", "not"):
            assert await read(opened, f"https://pub.test/{path}") == (
                "ERROR unreachable: the connection to the site failed."
            )
        assert await read(opened, "https://pub.test/other") == (
            "ERROR unsupported_type: the site sends this page in an unknown encoding."
        )


async def test_a_site_that_drips_is_left(pub: Pub) -> None:
    begin = time.monotonic()
    async with open_browser(pub, fetch_timeout_s=0.3) as opened:
        assert await read(opened, "https://pub.test/drip") == TIMEOUT
    assert 0.3 <= time.monotonic() - begin < 3


async def test_a_page_that_takes_long_to_convert_is_given_up(pub: Pub) -> None:
    pub.page("/", "<p>x</p>" * 20_000)
    async with open_browser(pub, convert_timeout_s=0.01) as opened:
        assert await read(opened, "https://pub.test/") == (
            "ERROR timeout: this page took too long to be turned into text."
        )


async def test_sixteen_readers_of_a_page_fetch_it_once(pub: Pub) -> None:
    pub.page("/", "<h1>Title</h1>")
    async with open_browser(pub) as opened:
        answers = await asyncio.gather(*(opened.read("https://pub.test/") for _ in range(16)))
    assert len(pub.requests) == 1
    assert len({answer.text for answer in answers}) == 1
    assert Counter(answer.counter for answer in answers) == {
        "browser/fetched": 1,
        "browser/shared": 15,
    }


async def test_an_error_is_not_kept(pub: Pub) -> None:
    async with open_browser(pub) as opened:
        assert await read(opened, "https://pub.test/late") == (
            "ERROR http_404: the site answered with status 404."
        )
        pub.page("/late", "<p>here now</p>")
        assert (await read(opened, "https://pub.test/late")).endswith("here now")


async def test_the_pages_of_a_document_come_from_one_fetch(pub: Pub) -> None:
    class Lines:
        max_tokens = 10

        def count(self, text: str) -> int:
            return text.count("\n")

    pub.page("/", "".join(f"<p>line {i}</p>" for i in range(12)))
    rules = BrowserSettings(local_sites={"pub.test": pub.port})
    async with Browser(rules, Lines()) as opened:
        first, second = (
            await read(opened, "http://pub.test/"),
            await read(opened, "http://pub.test/", 2),
        )
        for page in (0, 3):
            assert await read(opened, "http://pub.test/", page) == (
                "ERROR bad_page: this document has pages 1 to 2."
            )
    assert first.endswith("line 6\n[Continues: browse(url, page=2)]")
    assert second.startswith("http://pub.test/ (status 200, page 2 of 2)\n\nline 7\n")
    assert len(pub.requests) == 1


async def test_a_site_that_asks_to_wait_is_not_asked_again(pub: Pub) -> None:
    pub.pages["/"] = lambda _: web.Response(status=429, headers={"Retry-After": "60"})
    pub.page("/other", "<p>x</p>")
    names = {"a.test": [[("127.0.0.1", pub.port)]]}
    async with open_browser(pub, names=names, may_dial=lambda address, port: True) as opened:
        assert await read(opened, "http://a.test/") == (
            "ERROR rate_limited: the site asks for fewer requests; try again later."
        )
        assert await read(opened, "http://a.test/other") == (
            "ERROR rate_limited: this site is asked too often; try again later."
        )
    assert len(pub.requests) == 1


async def test_requests_to_a_site_are_spaced_and_to_a_local_one_are_not(pub: Pub) -> None:
    arrivals: list[float] = []

    def answer(request: web.BaseRequest) -> web.Response:
        arrivals.append(time.monotonic())
        return web.Response(text="x", content_type="text/html")

    pub.pages["/"] = answer
    names = {"a.test": [[("127.0.0.1", pub.port)]]}
    # Waiting for a slot is no part of the site's own time.
    settings = {"names": names, "may_dial": lambda address, port: True, "fetch_timeout_s": 0.5}
    async with open_browser(pub, **settings) as opened:
        begin = time.monotonic()
        await asyncio.gather(*(opened.read(f"http://pub.test/?{i}") for i in range(20)))
        assert time.monotonic() - begin < 1.5
        arrivals.clear()
        answers = await asyncio.gather(*(opened.read(f"http://a.test/?{i}") for i in range(3)))
    assert [answer.counter for answer in answers] == ["browser/fetched"] * 3
    assert all(0.9 < b - a < 1.5 for a, b in pairwise(arrivals))


@pytest.mark.parametrize(
    ("status", "html"),
    [
        (403, "<title>Just a moment...</title><p>Checking your browser"),
        (503, "<title>Just a moment...</title>"),
        (403, "<html><head><title>Access Denied</title></head>"),
        (200, "<html><script src='/apology_objects/abuse-detection-apology.js'></script>"),
        (200, "<title>Pardon Our Interruption</title>"),
    ],
)
async def test_a_page_that_turns_programs_away_is_no_content(
    pub: Pub, status: int, html: str
) -> None:
    pub.page("/", html, status=status)
    async with open_browser(pub) as opened:
        assert await read(opened, "https://pub.test/") == (
            "ERROR blocked_by_site: the site does not let programs read this page."
        )


async def test_a_page_that_writes_about_blocking_is_content(pub: Pub) -> None:
    pub.page("/", "<title>On waiting</title><p>Just a moment, said the Access Denied page.")
    async with open_browser(pub) as opened:
        assert (await read(opened, "https://pub.test/")).endswith("said the Access Denied page.")


@pytest.mark.parametrize("kind", ["application/pdf", "image/png", "application/octet-stream"])
async def test_what_is_no_text_is_not_read(pub: Pub, kind: str) -> None:
    pub.page("/", "%PDF", content_type=kind)
    async with open_browser(pub) as opened:
        assert await read(opened, "https://pub.test/") == (
            "ERROR unsupported_type: this is not a page of text."
        )


async def test_plain_text_and_json_are_shown_as_they_are(pub: Pub) -> None:
    pub.page("/json", '{"a": "<b>*c*</b>"}', content_type="application/json")
    pub.page("/text", "  a\u202e  b\r\n<p>", content_type="text/plain")
    async with open_browser(pub) as opened:
        assert (await read(opened, "https://pub.test/json")).endswith('\n\n{"a": "<b>*c*</b>"}')
        assert (await read(opened, "https://pub.test/text")).endswith("\n\n  a  b\n<p>")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html; charset=iso-8859-1", "<p>Zürich".encode("latin-1")),
        ("text/html", "<meta charset='windows-1252'><p>Zürich".encode("cp1252")),
        ("text/html", "<p>Zürich".encode("utf-8-sig")),
        ("text/html", "<p>Zürich".encode("utf-16")),
        ("text/html; charset=idna", "<p>Zürich".encode()),
        ("text/html; charset=zlib", "<p>Zürich".encode()),
    ],
)
async def test_encodings_of_the_web_are_understood(pub: Pub, kind: str, body: bytes) -> None:
    pub.pages["/"] = lambda _: web.Response(body=body, headers={"Content-Type": kind})
    async with open_browser(pub) as opened:
        assert (await read(opened, "https://pub.test/")).endswith("\n\nZürich")


async def test_error_texts_show_nothing_of_this_machine(pub: Pub, unused_port: int) -> None:
    class Broken:
        async def fetch(self, url: object) -> object:
            raise RuntimeError(f"{__file__}: line 1, address 127.0.0.1")

        async def aclose(self) -> None:
            pass

    names = {"refused.test": [[("127.0.0.1", unused_port)]]}
    async with open_browser(pub, names=names, may_dial=lambda address, port: True) as opened:
        texts = [
            await read(opened, url)
            for url in ("https://none.test/", "https://refused.test/", "https://pub.test/x", "x")
        ]
    async with Browser(BrowserSettings(), source=Broken()) as opened:  # type: ignore[arg-type]  # a fake
        texts.append(await read(opened, "https://pub.test/"))
    assert texts == [
        "ERROR unreachable: there is no such host.",
        "ERROR unreachable: the connection to the site failed.",
        "ERROR http_404: the site answered with status 404.",
        "ERROR bad_url: a URL must start with http:// or https:// and name a host.",
        "ERROR unreadable: this page could not be turned into text.",
    ]


async def test_folders_are_served_as_sites(tmp_path: Path) -> None:
    site, other = tmp_path / "site", tmp_path / "other"
    (site / "study").mkdir(parents=True)
    other.mkdir()
    (tmp_path / "secret.html").write_text("secret")
    (site / "link.html").symlink_to(tmp_path / "secret.html")
    (site / "index.html").write_text("<p>Home")
    (site / "study" / "NCT1.html").write_text("<p>Study Zürich")
    (other / "index.html").write_text("<p>Other")
    async with LocalSites({"a.test": site, "b.test": str(other)}) as sites:
        rules = BrowserSettings(local_sites=sites.ports)
        async with Browser(rules) as opened:
            found = {
                path: (await read(opened, f"https://{path}")).split("\n")[-1]
                for path in ("a.test", "a.test/study/NCT1", "a.test/study/NCT1.html", "b.test/")
            }
            lost = [
                await read(opened, f"https://a.test{path}")
                for path in (
                    *("/study", "/study/NCT2", "/link", "/%2e%2e/secret", "/..%2fsecret.html"),
                    *("/study/..%2f..%2fsecret", "//etc/passwd", "/%00", "/" + "x" * 1_000),
                )
            ]
        assert sites.num_requests == 4 + 9
    assert found == {
        "a.test": "Home",
        "a.test/study/NCT1": "Study Zürich",
        "a.test/study/NCT1.html": "Study Zürich",
        "b.test/": "Other",
    }
    assert lost == ["ERROR http_404: the site answered with status 404."] * 9


async def test_a_server_of_ones_own_stands_for_a_folder(pub: Pub) -> None:
    pub.page("/", "<p>own")
    async with (
        LocalSites({"own.test": f"127.0.0.1:{pub.port}"}) as sites,
        Browser(BrowserSettings(local_sites=sites.ports)) as opened,
    ):
        assert (await read(opened, "https://own.test/")).endswith("own")
        assert sites.num_requests == 0


def test_a_site_without_a_folder_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(ConfigError) as refused:
        LocalSites({"a.test": "no/such/folder"})
    assert str(refused.value) == (
        "browser.local_sites: a.test: no/such/folder is not a folder; make it, or name a server of "
        "your own as 127.0.0.1:PORT"
    )


async def test_the_browser_of_a_process_serves_every_loop_and_counts(pub: Pub) -> None:
    pub.page("/", "<p>x</p>")
    browser.configure(BrowserSettings(local_sites={"pub.test": pub.port}))
    counts: dict[str, int] = {}

    def sync_tool() -> str:
        return asyncio.run(browser.read("https://pub.test/"))

    try:
        with collecting(counts):
            texts = [await browser.read("https://pub.test/"), await asyncio.to_thread(sync_tool)]
            assert await browser.read("https://a.test/") == NOT_ALLOWED
    finally:
        shared.close()
    assert texts == ["https://pub.test/ (status 200, page 1 of 1)\n\nx"] * 2
    assert len(pub.requests) == 1
    assert counts == {
        "browser/fetched": 1,
        "browser/shared": 1,
        "browser/error_host_not_allowed": 1,
    }


async def test_the_browser_of_a_process_works_beside_nest_asyncio(pub: Pub) -> None:
    pub.page("/", "<p>x</p>")
    code = f"""if True:
        import asyncio
        from rnow import browser
        from rnow.browser import shared
        browser.configure(browser.BrowserSettings(local_sites={{"pub.test": {pub.port}}}))
        before = asyncio.run(browser.read("https://pub.test/"))
        import nest_asyncio
        nest_asyncio.apply()
        async def tool():
            return asyncio.run(browser.read("https://pub.test/?again"))
        print(before[-1], asyncio.run(tool())[-1])
        shared.close()
    """
    finished = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (finished.stdout, finished.stderr) == ("x x\n", "")


def test_importing_the_browser_is_light() -> None:
    code = (
        "import sys, rnow.browser\n"
        "rnow.browser.configure(rnow.browser.BrowserSettings())\n"
        "print({'aiohttp', 'crawl4ai', 'lxml', 'torch'} & set(sys.modules))"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60)
    assert printed == "set()\n"


@pytest.fixture
async def unused_port() -> int:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return int(port)


def self_signed(folder: Path) -> Path:
    """Write a key and a certificate for a.test that nobody has signed."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a.test")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("a.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "site.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file
