"""What rnow.browser makes of the answers of real servers on loopback."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from loopback import Pub, open_browser, read, serve_pub

from rnow.browser import BrowserSettings
from rnow.browser.reader import Browser


@pytest.fixture
async def pub() -> AsyncIterator[Pub]:
    async with serve_pub() as site:
        yield site


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
    assert [request.path for request in pub.requests] == ["/robots.txt", "/"]


async def test_a_site_is_left_alone_for_as_long_as_it_asks(pub: Pub) -> None:
    arrivals: dict[str, float] = {}

    def answer(request: web.BaseRequest) -> web.Response:
        arrivals[request.path] = time.monotonic()
        return web.Response(status=429, headers={"Retry-After": "3"})

    pub.pages["/"] = pub.pages["/other"] = answer
    names = {"a.test": [[("127.0.0.1", pub.port)]]}
    async with open_browser(pub, names=names, may_dial=lambda address, port: True) as opened:
        for path in ("", "other"):
            assert await read(opened, f"http://a.test/{path}") == (
                "ERROR rate_limited: the site asks for fewer requests; try again later."
            )
    assert 2.9 < arrivals["/other"] - arrivals["/"] < 10


async def test_requests_to_a_site_are_spaced_and_to_a_local_one_are_not(pub: Pub) -> None:
    arrivals: list[float] = []

    def answer(request: web.BaseRequest) -> web.Response:
        arrivals.append(time.monotonic())
        return web.Response(text="x", content_type="text/html")

    pub.pages["/"] = pub.pages["/robots.txt"] = answer
    names = {"a.test": [[("127.0.0.1", pub.port)]]}
    # Waiting for a slot is no part of the site's own time.
    settings = {"names": names, "may_dial": lambda address, port: True, "fetch_timeout_s": 1.5}
    async with open_browser(pub, **settings) as opened:
        await opened.read("http://pub.test/")  # loads crawl4ai
        await asyncio.gather(*(opened.read(f"http://pub.test/?{i}") for i in range(20)))
        assert arrivals[-1] - arrivals[1] < 15  # spaced they would take 19
        arrivals.clear()
        begin = time.monotonic()
        answers = await asyncio.gather(*(opened.read(f"http://a.test/?{i}") for i in range(3)))
    assert [answer.counter for answer in answers] == ["browser/fetched"] * 3
    assert len(arrivals) == 4  # robots.txt is one of them
    # However late a busy machine brings one, none comes before its second.
    assert all(at >= begin + number - 0.01 for number, at in enumerate(arrivals))


@pytest.mark.parametrize(
    ("status", "html"),
    [
        (403, "<title>Just a moment...</title><p>Checking your browser"),
        (403, f"<title> Just a moment\u2026 </title><script>{'x' * 30_000}</script>"),
        (503, "<title>Just a moment...</title>"),
        (403, "<html><head><title>Access Denied</title></head>"),
        (200, "<html><script src='/apology_objects/abuse-detection-apology.js'></script>"),
        (200, "<title>Pardon Our Interruption</title>"),
        (200, "<title>EXR Apology</title>"),
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


@pytest.mark.parametrize(
    ("title", "num_words"),
    [
        ("On waiting", 3),
        ("Just a moment in time: a study", 3),
        ("Access denied to care in rural areas", 3),
        ("An apology for poetry", 3),
        ("The Apology", 3),
        ("Public apology", 3),
        ("Access Denied", 500),  # an article of this name, and no short refusal
    ],
)
async def test_a_page_that_writes_about_blocking_is_content(
    pub: Pub, title: str, num_words: int
) -> None:
    text = "Just a moment, said the Access Denied page." + " word" * num_words
    pub.page("/", f"<title>{title}</title><p>{text}")
    async with open_browser(pub) as opened:
        assert (await read(opened, "https://pub.test/")).endswith(f"\n\n{text}")


@pytest.mark.parametrize("kind", ["application/zip", "image/png", "application/octet-stream"])
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
        ("text/html", b"<meta charset=iso-8859-1><p>Z\xfcrich"),
        ("application/xhtml+xml", "<?xml version='1.0'?><html><p>Zürich".encode()),
        ("text/xml", b"<?xml version='1.0' encoding='iso-8859-1'?><html><body><p>Z\xfcrich"),
        ("*/*", "<p>Zürich".encode()),
        ("text/html, text/html", "<p>Zürich".encode()),
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
    async with Browser(BrowserSettings(allow_hosts=("*",)), source=Broken()) as opened:  # type: ignore[arg-type]  # a fake
        texts.append(await read(opened, "https://pub.test/"))
    assert texts == [
        "ERROR unreachable: there is no such host.",
        "ERROR unreachable: the connection to the site failed.",
        "ERROR http_404: the site answered with status 404.",
        "ERROR bad_url: a URL must start with http:// or https:// and name a host.",
        "ERROR unreadable: this page could not be turned into text.",
    ]


@pytest.fixture
async def unused_port() -> int:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return int(port)
