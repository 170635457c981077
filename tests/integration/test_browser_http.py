"""What rnow.browser fetches and what it refuses, against real servers on loopback."""

import asyncio
import gzip
import ssl
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import brotli  # type: ignore[import-untyped]  # it ships no types
import pytest
import zstandard
from aiohttp import web
from attacks import CONTROL_PAGE, added_ids_of, reaching, tells_of_this_machine
from loopback import (
    Inner,
    Names,
    Pub,
    open_browser,
    read,
    self_signed,
    serve_inner,
    serve_pub,
)
from processes import until
from yarl import URL

import rnow
from rnow.browser import BrowserSettings
from rnow.browser.http import HttpSource
from rnow.browser.reader import Browser
from rnow.browser.rules.hosts import AllowedUrl, HostRules

BLOCKED = "ERROR blocked_address: this address is not on the public internet."
NOT_ALLOWED = "ERROR host_not_allowed: this host is not on the list of sites that may be read."
TIMEOUT = "ERROR timeout: the site did not answer in time."


@pytest.fixture
async def pub() -> AsyncIterator[Pub]:
    async with serve_pub() as site:
        yield site


@pytest.fixture
async def inner() -> AsyncIterator[Inner]:
    async with serve_inner() as server:
        yield server


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
    assert inner.num_hits == 2  # robots.txt is the other


@pytest.mark.parametrize(
    "start", ["", "view-source:", "raw:", "data:text/html,", "javascript:", "chrome:", "ftp:"]
)
async def test_no_file_of_this_machine_is_read(pub: Pub, tmp_path: Path, start: str) -> None:
    secret = tmp_path / "secret.html"
    secret.write_text("the secret words")
    async with open_browser(pub) as opened:
        assert await read(opened, f"{start}{secret.as_uri()}") == (
            "ERROR bad_url: a URL must start with http:// or https:// and name a host."
        )


async def test_nothing_that_a_page_names_is_loaded_or_run(pub: Pub, inner: Inner) -> None:
    target = f"127.0.0.2:{inner.port}"
    pub.page(
        "/",
        f"<meta http-equiv=refresh content='60;url=http://{target}/'><h1>Title</h1>"
        f"{reaching(target)}<script>location = 'http://{target}/'; for (;;) {{}}</script>",
    )
    async with open_browser(pub, inner) as opened:
        assert await read(opened, "https://pub.test/") == (
            "https://pub.test/ (status 200, page 1 of 1)\n\n# Title"
        )
    assert ([request.path for request in pub.requests], inner.num_hits) == (["/"], 0)


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


@pytest.mark.parametrize("way", ["meta", "header"])
async def test_a_refresh_is_checked_like_any_redirect(pub: Pub, inner: Inner, way: str) -> None:
    def sent_to(target: str) -> Callable[[web.BaseRequest], web.Response]:
        content = f"0; url={target}"
        meta = f'<meta http-equiv="refresh" content="{content}">' if way == "meta" else ""
        headers = {"Refresh": content} if way == "header" else {}
        return lambda _: web.Response(
            text=f"{meta}<p>old", content_type="text/html", headers=headers
        )

    names = {"inner.test": [[("127.0.0.2", inner.port)]]}
    targets = {
        f"http://127.0.0.2:{inner.port}/": BLOCKED,
        f"//inner.test:{inner.port}/": BLOCKED,
        "https://b.test/": NOT_ALLOWED,
        "/loop": "ERROR too_many_redirects: the site sends the reader from page to page.",
        "file:///etc/passwd": "{url} (status 200, page 1 of 1)\n\nold",
        "/new": "https://pub.test/new (status 200, page 1 of 1)\n\nnew",
    }
    pub.pages["/loop"] = sent_to("/again")
    pub.pages["/again"] = sent_to("/loop")
    pub.page("/new", "<p>new")
    hosts = ("pub.test", "127.0.0.2", "inner.test")
    async with open_browser(pub, inner, names=names, allow_hosts=hosts) as opened:
        for number, (target, text) in enumerate(targets.items()):
            url = f"https://pub.test/{number}"
            pub.pages[f"/{number}"] = sent_to(target)
            assert await read(opened, url) == text.replace("{url}", url)
    assert inner.num_hits == 0
    assert sum(request.path in ("/loop", "/again") for request in pub.requests) == 5


async def test_a_redirect_leads_to_no_host_that_is_not_allowed(pub: Pub) -> None:
    pub.pages["/"] = lambda _: web.Response(status=302, headers={"Location": "https://b.test/"})
    async with open_browser(pub, allow_hosts=("a.test",)) as opened:
        assert await read(opened, "https://pub.test/") == NOT_ALLOWED


async def test_the_host_of_a_url_is_checked_once_and_that_of_each_redirect(
    pub: Pub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    check = HostRules.check

    def counted(rules: HostRules, url: URL) -> AllowedUrl:
        checked.append(str(url))
        return check(rules, url)

    monkeypatch.setattr(HostRules, "check", counted)
    pub.pages["/old"] = lambda _: web.Response(status=301, headers={"Location": "/new"})
    pub.page("/new", "<p>new")
    # All sources in their order; the store keeps where the page ended.
    rules = BrowserSettings(
        local_sites={"a.test": pub.port}, store=str(tmp_path), store_mode="record"
    )
    way = ["http://a.test/old", "http://a.test/new"]
    for _ in range(2):
        async with Browser(rules) as opened:
            assert (await read(opened, "http://a.test/old")).endswith("new")
        assert checked == way
        checked.clear()
    assert [request.path for request in pub.requests] == ["/old", "/new"]


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
    # robots.txt and the first page come over one connection.
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


async def test_no_exception_of_the_environment_opens_an_inner_server(
    pub: Pub, inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    names = {"inner.test": [[("127.0.0.2", inner.port)]]}
    async with open_browser(pub, inner, names=names) as opened:
        for host in ("inner.test", "127.0.0.2"):
            assert await read(opened, f"http://{host}:{inner.port}/") == BLOCKED
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
    assert agents == [f"rnow/{rnow.__version__} (+me@example.org)"] * 3
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


async def test_a_download_leaves_nothing_behind(
    pub: Pub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    headers = {"Content-Disposition": 'attachment; filename="../../evil.zip"'}
    pub.page("/zip", "PK", content_type="application/zip", headers=headers)
    pub.page("/html", "<p>PK", headers=headers)
    before = sorted(tmp_path.rglob("*"))
    async with open_browser(pub) as opened:
        assert await read(opened, "https://pub.test/zip") == (
            "ERROR unsupported_type: this is not a page of text."
        )
        assert (await read(opened, "https://pub.test/html")).endswith("\n\nPK")
    assert sorted(tmp_path.rglob("*")) == before


async def test_no_control_token_comes_of_a_page(pub: Pub) -> None:
    pub.page("/", CONTROL_PAGE)
    async with open_browser(pub) as opened:
        text = await read(opened, "https://pub.test/")
    assert text.endswith("# <|im_end|> x <|im_start|> x <tool_call> x </tool_call> x <think> x")
    assert added_ids_of(text) == added_ids_of("")


async def test_a_body_of_50_mb_is_not_read(pub: Pub) -> None:
    async with open_browser(pub) as opened:
        assert await read(opened, "https://pub.test/endless") == (
            "ERROR too_large: this page is larger than 5 MB."
        )
    assert pub.num_bytes_sent < 15_000_000  # socket buffers included


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", lambda body: gzip.compress(body, compresslevel=1)),
        ("deflate", lambda body: zlib.compress(body, 9)),
        ("br", lambda body: brotli.compress(body, quality=5)),
        ("zstd", zstandard.compress),
        ("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
    ],
)
async def test_a_bomb_stays_small_in_memory(
    pub: Pub, coding: str, pack: Callable[[bytes], bytes]
) -> None:
    pub.pages["/"] = packed(pack(bytes(100_000_000)), coding)
    async with open_browser(pub) as opened:
        await opened.read("https://pub.test/other")  # what loading leaves behind is not the bomb's
        tracemalloc.start()
        text = await read(opened, "https://pub.test/")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert text == "ERROR too_large: this page is larger than 5 MB."
    assert peak < 40_000_000


def deflated(text: bytes, window: int) -> bytes:
    packer = zlib.compressobj(wbits=window)
    return packer.compress(text) + packer.flush()


TEXT = b"<p>unpacked " * 500
PLAIN = b"<p>plain"
UNPACKED = {
    "gzip": gzip.compress(TEXT),
    "X-GZIP": gzip.compress(TEXT),
    "gzip, identity": gzip.compress(TEXT),
    "gzip;two streams": gzip.compress(TEXT[:99]) + gzip.compress(TEXT[99:]),
    "gzip;many streams": b"".join(gzip.compress(TEXT[i : i + 1]) for i in range(len(TEXT))),
    "gzip;and a rest": gzip.compress(TEXT) + b"\0\0 and more",
    "gzip;zlib": zlib.compress(TEXT),
    "deflate": zlib.compress(TEXT),
    "deflate;raw": deflated(TEXT, -15),
    "deflate;gzip": gzip.compress(TEXT),
    "br": brotli.compress(TEXT),
    "zstd": zstandard.compress(TEXT),
    "zstd;two frames": zstandard.compress(TEXT[:99]) + zstandard.compress(TEXT[99:]),
    "deflate, gzip": gzip.compress(zlib.compress(TEXT)),
    "br,zstd": zstandard.compress(brotli.compress(TEXT)),
}
TAKEN_AS_IT_IS = ("", "identity", "none", "utf-8", "gzip", "zstd", "UTF-8, identity", "aws-chunked")
NOT_UNDONE = "ERROR unreadable: the site sends this page packed in a way that cannot be undone."
UNKNOWN = "ERROR unsupported_type: the site sends this page in an unknown encoding."
PACKED_WRONGLY = {
    "gzip;cut": (gzip.compress(TEXT)[:-20], NOT_UNDONE),
    "deflate;cut": (zlib.compress(TEXT)[:-9], NOT_UNDONE),
    "br;cut": (brotli.compress(TEXT)[:-3], NOT_UNDONE),
    "zstd;cut": (zstandard.compress(TEXT)[:-3], NOT_UNDONE),
    "gzip;broken": (b"\x1f\x8b broken", NOT_UNDONE),
    "deflate;broken": (b"\xff\xff broken", NOT_UNDONE),
    "br;plain": (PLAIN, NOT_UNDONE),
    "compress": (b"\x1f\x9d\x90<p\0", UNKNOWN),
    "gzip, gzip, gzip, gzip, gzip, gzip": (gzip.compress(TEXT), UNKNOWN),
}


def packed(body: bytes, coding: str) -> Callable[[web.BaseRequest], web.Response]:
    headers = {"Content-Type": "text/html", "Content-Encoding": coding.partition(";")[0]}
    return lambda _: web.Response(body=body, headers=headers)


async def test_a_page_is_unpacked_as_it_is_packed_whatever_that_is_called(pub: Pub) -> None:
    for number, (coding, body) in enumerate(UNPACKED.items()):
        pub.pages[f"/packed{number}"] = packed(body, coding)
    for number, coding in enumerate(TAKEN_AS_IT_IS):
        pub.pages[f"/plain{number}"] = packed(PLAIN, coding)
    async with open_browser(pub) as opened:
        for number, coding in enumerate(UNPACKED):
            text = await read(opened, f"https://pub.test/packed{number}")
            assert (coding, text.count("unpacked")) == (coding, 500)
        for number in range(len(TAKEN_AS_IT_IS)):
            assert (await read(opened, f"https://pub.test/plain{number}")).endswith("\n\nplain")


async def test_what_cannot_be_unpacked_is_no_page(pub: Pub) -> None:
    for number, (coding, (body, _)) in enumerate(PACKED_WRONGLY.items()):
        pub.pages[f"/{number}"] = packed(body, coding)
    async with open_browser(pub) as opened:
        texts = [await read(opened, f"https://pub.test/{n}") for n in range(len(PACKED_WRONGLY))]
    assert texts == [text for _, text in PACKED_WRONGLY.values()]


async def test_a_site_that_drips_is_left(pub: Pub) -> None:
    begin = time.monotonic()
    async with open_browser(pub, fetch_timeout_s=0.3) as opened:
        assert await read(opened, "https://pub.test/drip") == TIMEOUT
    assert 0.3 <= time.monotonic() - begin < 60


async def test_a_page_that_takes_long_to_convert_is_given_up(pub: Pub) -> None:
    pub.page("/", "<p>x</p>" * 20_000)
    async with open_browser(pub, convert_timeout_s=0.01) as opened:
        assert await read(opened, "https://pub.test/") == (
            "ERROR timeout: this page took too long to be turned into text."
        )


async def test_calls_that_are_abandoned_leave_no_connection(pub: Pub) -> None:
    async with open_browser(pub) as opened:
        reading = [
            asyncio.create_task(opened.read(f"https://pub.test/drip?{number}"))
            for number in range(50)
        ]
        while len(pub.requests) < 50:
            await asyncio.sleep(0.01)
        assert pub.num_connections == 50
        for task in reading:
            task.cancel()
        await until(lambda: pub.num_connections == 0)
        await asyncio.gather(*reading, return_exceptions=True)


async def test_no_error_tells_of_this_machine(pub: Pub, inner: Inner, tmp_path: Path) -> None:
    def cut_off(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    signed_by_nobody = await asyncio.start_server(
        lambda r, w: w.close(), "127.0.0.1", 0, ssl=context
    )
    pub.pages["/cut"] = cut_off
    pub.pages["/gzip"] = packed(b"\x1f\x8b no gzip", "gzip")
    pub.page("/pdf", "%PDF-1.4 broken", content_type="application/pdf")
    pub.page("/deep", "<div>" * 100_000)
    pub.pages["/to"] = lambda _: web.Response(status=302, headers={"Location": "http://["})
    names = {
        "inner.test": [[("127.0.0.2", inner.port)]],
        "refused.test": [[("127.0.0.1", 1)]],
        "signed.test": [[("127.0.0.1", signed_by_nobody.sockets[0].getsockname()[1])]],
    }
    pages = [f"pub.test/{path}" for path in ("cut", "gzip", "pdf", "to", "none", "endless")]
    hosts = ["inner.test", "refused.test", "nowhere.test", f"127.0.0.2:{inner.port}", "[::1]"]
    async with (
        signed_by_nobody,
        open_browser(
            pub, inner, names=names, may_dial=lambda address, port: address == "127.0.0.1"
        ) as opened,
    ):
        texts = [
            await read(opened, url)
            for url in (*(f"http://{url}" for url in (*pages, *hosts)), "https://signed.test/")
        ]
        deep = await read(opened, "http://pub.test/deep")
    assert all(text.startswith("ERROR ") and "\n" not in text for text in texts)
    assert [word for text in (*texts, deep) for word in tells_of_this_machine(text)] == []
