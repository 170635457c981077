"""robots.txt, asked of real servers on loopback."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from loopback import Inner, Names, Pub, open_browser, read, serve_inner, serve_pub
from yarl import URL

from rnow.browser import BrowserSettings
from rnow.browser.chromium.source import ChromiumSource
from rnow.browser.errors import BrowseError
from rnow.browser.http import HttpSource

DISALLOWED = "ERROR blocked_by_site: the site asks programs not to read this page."
UNKNOWN = "ERROR unreachable: what this site allows programs cannot be read."


@pytest.fixture
async def pub() -> AsyncIterator[Pub]:
    async with serve_pub() as site:
        site.page("/open", "<p>open")
        site.page("/private/page", "<p>private")
        yield site


def a_test(pub: Pub) -> dict[str, object]:
    """Settings under which a.test is the site, as a name of the open web."""
    names = {"a.test": [[("127.0.0.1", pub.port)]]}
    return {"names": names, "may_dial": lambda address, port: True}


async def test_pages_that_a_site_closes_to_programs_are_not_asked_for(pub: Pub) -> None:
    rules = "User-agent: *\nDisallow: /\n\nUser-agent: rnow\nDisallow: /private\n"
    pub.page("/robots.txt", rules, content_type="text/plain")
    async with open_browser(pub, **a_test(pub)) as opened:
        assert await read(opened, "http://a.test/private/page") == DISALLOWED
        assert (await read(opened, "http://a.test/open")).endswith("open")
        assert await read(opened, "http://a.test/private/other") == DISALLOWED
    assert [request.path for request in pub.requests] == ["/robots.txt", "/open"]


async def test_a_redirect_does_not_lead_around_the_rules(pub: Pub) -> None:
    pub.page("/robots.txt", "User-agent: *\nDisallow: /private", content_type="text/plain")
    pub.pages["/way"] = lambda _: web.Response(status=302, headers={"Location": "/private/page"})
    async with open_browser(pub, **a_test(pub)) as opened:
        assert await read(opened, "http://a.test/way") == DISALLOWED


async def test_readers_at_the_same_time_read_the_rules_once(pub: Pub) -> None:
    pub.page("/robots.txt", "User-agent: *\nDisallow: /", content_type="text/plain")
    async with open_browser(pub, **a_test(pub)) as opened:
        texts = await asyncio.gather(*(read(opened, f"http://a.test/{i}") for i in range(9)))
    assert set(texts) == {DISALLOWED}
    assert len(pub.requests) == 1


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_where_the_rules_cannot_be_read_nothing_is(pub: Pub, status: int) -> None:
    pub.pages["/robots.txt"] = lambda _: web.Response(status=status)
    async with open_browser(pub, **a_test(pub)) as opened:
        assert await read(opened, "http://a.test/open") == UNKNOWN
        assert await read(opened, "http://a.test/private/page") == UNKNOWN
    assert [request.path for request in pub.requests] == ["/robots.txt"]


@pytest.mark.parametrize("status", [404, 403])
async def test_a_site_without_rules_may_be_read(pub: Pub, status: int) -> None:
    pub.pages["/robots.txt"] = lambda _: web.Response(status=status)
    async with open_browser(pub, **a_test(pub)) as opened:
        assert (await read(opened, "http://a.test/open")).endswith("open")


@pytest.mark.parametrize("host", ["127.0.0.2", "inner.test"])
async def test_the_rules_are_fetched_under_the_guard(pub: Pub, host: str) -> None:
    async with serve_inner() as inner:
        assert await robots_at(pub, inner, host) in (UNKNOWN, BLOCKED)
        assert inner.num_hits == 0


BLOCKED = "ERROR blocked_address: this address is not on the public internet."


async def robots_at(pub: Pub, inner: Inner, host: str) -> str:
    """Read a page of a site whose robots.txt sends the reader to an inner server."""
    pub.pages["/robots.txt"] = lambda _: web.Response(
        status=302, headers={"Location": f"http://{host}:{inner.port}/robots.txt"}
    )
    names = {
        "a.test": [[("127.0.0.1", pub.port)]],
        "inner.test": [[("127.0.0.2", inner.port)]],
    }
    may_dial = {"names": names, "may_dial": lambda a, port: (a, port) == ("127.0.0.1", pub.port)}
    async with open_browser(pub, inner, **may_dial) as opened:  # type: ignore[arg-type]
        return await read(opened, "http://a.test/open")


async def test_a_site_that_wants_more_time_gets_it(pub: Pub) -> None:
    arrivals: list[float] = []

    def answer(request: web.BaseRequest) -> web.Response:
        arrivals.append(time.monotonic())
        return web.Response(text="User-agent: *\nCrawl-delay: 2\n", content_type="text/plain")

    pub.pages["/"] = pub.pages["/robots.txt"] = answer
    async with open_browser(pub, **a_test(pub)) as opened:
        begin = time.monotonic()
        await asyncio.gather(*(opened.read(f"http://a.test/?{i}") for i in range(3)))
    # However late a busy machine brings one, none comes before its time: robots.txt, then pages.
    assert all(at >= begin + 2 * number - 0.01 for number, at in enumerate(arrivals[1:]))


async def test_two_workers_share_the_patience_of_a_site(pub: Pub) -> None:
    arrivals: list[float] = []

    def answer(request: web.BaseRequest) -> web.Response:
        arrivals.append(time.monotonic())
        return web.Response(text="x", content_type="text/plain")

    pub.pages["/"] = answer
    settings = {**a_test(pub), "num_workers": 2}
    async with open_browser(pub, **settings) as one, open_browser(pub, **settings) as other:
        started = time.monotonic()
        await asyncio.gather(
            *(opened.read(f"http://a.test/?{i}") for opened in (one, other) for i in range(2))
        )
    # Each asks every 2 s, its robots.txt first: together never more than one a second.
    assert len(arrivals) == 4
    assert sorted(arrivals)[0] - started > 1.9
    assert sorted(arrivals)[-1] - started > 3.9


async def test_chromium_asks_for_the_rules_before_it_starts(pub: Pub) -> None:
    pub.page("/robots.txt", "User-agent: *\nDisallow: /", content_type="text/plain")
    settings = BrowserSettings(
        allow_hosts=("a.test",), contact="me@example.org", executable="/bin/false"
    )
    http = HttpSource(
        settings,
        resolver=Names({"a.test": [[("127.0.0.1", pub.port)]]}),
        may_dial=lambda address, port: True,
    )
    chromium = ChromiumSource(settings, check_robots=http.check_robots)
    with pytest.raises(BrowseError) as refused:
        await chromium.fetch(URL("http://a.test/"))
    assert refused.value.text == DISALLOWED
    assert [request.path for request in pub.requests] == ["/robots.txt"]
    await chromium.aclose()
    await http.aclose()


async def test_local_sites_have_no_rules(pub: Pub) -> None:
    pub.page("/robots.txt", "User-agent: *\nDisallow: /", content_type="text/plain")
    async with open_browser(pub) as opened:
        assert (await read(opened, "http://pub.test/open")).endswith("open")
    assert [request.path for request in pub.requests] == ["/open"]
