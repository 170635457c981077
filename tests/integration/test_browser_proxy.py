"""The proxy that stands between Chromium and the web, spoken to as Chromium does."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from loopback import Answers, Inner, Names, Pub, serve_inner, serve_pub
from processes import PATIENCE_S, until

from rnow.browser import BrowserSettings
from rnow.browser.chromium.proxy import ForwardProxy, Lease
from rnow.browser.rules.guard import is_public


@pytest.fixture
async def pub() -> AsyncIterator[Pub]:
    async with serve_pub() as site:
        yield site


@pytest.fixture
async def inner() -> AsyncIterator[Inner]:
    async with serve_inner() as server:
        yield server


@asynccontextmanager
async def open_proxy(
    pub: Pub,
    inner: Inner | None = None,
    *,
    names: dict[str, list[Answers]] | None = None,
    may_dial: Callable[[str, int], bool] = lambda address, port: is_public(address),
    **settings: object,
) -> AsyncIterator[ForwardProxy]:
    chosen: dict[str, object] = {
        "local_sites": {"pub.test": pub.port},
        "ports": (80, 443) if inner is None else (80, 443, inner.port),
    }
    proxy = ForwardProxy(
        BrowserSettings(**(chosen | settings)),  # type: ignore[arg-type]  # keywords of one test
        resolver=None if names is None else Names(names),
        may_dial=may_dial,
    )
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.aclose()


@asynccontextmanager
async def lent(proxy: ForwardProxy) -> AsyncIterator[Lease]:
    lease = proxy.lend()
    try:
        yield lease
    finally:
        await proxy.take_back(lease)


async def ask(proxy: ForwardProxy, lease: Lease | None, *lines: str) -> str:
    """Send one message to the proxy and return all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    head = [line.encode() for line in (*lines, "Host: pub.test")]
    if lease is not None:
        head.append(b"Proxy-Authorization: " + lease.authorization)
    writer.write(b"\r\n".join([*head, b"", b""]))
    answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    return answer.decode()


async def test_a_request_reaches_a_site_without_what_is_the_proxys(pub: Pub) -> None:
    pub.page("/a", "<p>here")
    async with open_proxy(pub) as proxy, lent(proxy) as lease:
        answer = await ask(
            proxy,
            lease,
            "GET http://pub.test/a?x=%7e HTTP/1.1",
            "Proxy-Connection: keep-alive",
        )
        assert answer.startswith("HTTP/1.1 200 OK\r\n")
        assert answer.endswith("\r\nConnection: close\r\n\r\n<p>here")
        assert lease.num_bytes == len("<p>here")
    (request,) = pub.requests
    assert request.path_qs == "/a?x=%7e"
    assert dict(request.headers) == {"Host": "pub.test", "Connection": "close"}


async def test_a_tunnel_carries_bytes_both_ways(pub: Pub) -> None:
    pub.page("/", "<p>here")
    async with open_proxy(pub) as proxy, lent(proxy) as lease:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"CONNECT pub.test:443 HTTP/1.1\r\nProxy-Authorization: ")
        writer.write(lease.authorization + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == (
            b"HTTP/1.1 200 Connection established\r\n\r\n"
        )
        writer.write(b"GET / HTTP/1.1\r\nHost: pub.test\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), PATIENCE_S)).endswith(b"<p>here")
        writer.close()


async def test_whoever_has_no_lease_gets_nothing(pub: Pub) -> None:
    async with open_proxy(pub) as proxy:
        async with lent(proxy) as ended:
            pass
        async with lent(proxy) as lease:
            wrong = Lease(username=lease.username, password="guess")
            for key in (None, wrong, ended):
                assert await ask(proxy, key, "GET http://pub.test/ HTTP/1.1") == (
                    "HTTP/1.1 407 Refused\r\nContent-Length: 0\r\n"
                    'Proxy-Authenticate: Basic realm="rnow"\r\nConnection: close\r\n\r\n'
                )
    assert pub.requests == []


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.2", "127.0.0.1", "localhost", "[::1]", "[::ffff:7f00:2]", "0x7f000002"),
        *("2130706434", "127.1", "169.254.169.254", "100.64.0.1", "[64:ff9b::7f00:2]", "0.0.0.0"),
    ],
)
@pytest.mark.parametrize("line", ["CONNECT {} HTTP/1.1", "GET http://{}/ HTTP/1.1"])
async def test_an_inner_server_is_never_dialled(
    pub: Pub, inner: Inner, line: str, host: str
) -> None:
    async with open_proxy(pub, inner) as proxy, lent(proxy) as lease:
        answer = await ask(proxy, lease, line.format(f"{host}:{inner.port}"))
    assert answer.split("\r\n")[0] in ("HTTP/1.1 502 Refused", "HTTP/1.1 400 Refused")
    assert inner.num_hits == 0


async def test_an_inner_server_would_be_reached_without_the_guard(pub: Pub, inner: Inner) -> None:
    names = {"inner.test": [[("127.0.0.2", inner.port)]]}
    async with (
        open_proxy(pub, names=names, may_dial=lambda address, port: True) as proxy,
        lent(proxy) as lease,
    ):
        assert (await ask(proxy, lease, "GET http://inner.test/ HTTP/1.1")).endswith("secret")
    assert inner.num_hits == 1


async def test_a_name_is_refused_for_one_inner_address_and_whenever_it_has_one(
    pub: Pub, inner: Inner
) -> None:
    public, inside = ("127.0.0.1", pub.port), ("127.0.0.2", inner.port)
    names = {
        "mixed.test": [[public, inside]],
        "mixed2.test": [[inside, public]],
        "rebinding.test": [[public], [inside]],
    }
    async with (
        open_proxy(pub, names=names, may_dial=lambda *address: address == public) as proxy,
        lent(proxy) as lease,
    ):
        pub.page("/", "<p>public")
        assert (await ask(proxy, lease, "GET http://rebinding.test/ HTTP/1.1")).endswith("public")
        for host in ("mixed.test", "mixed2.test", "rebinding.test"):
            for line in (f"GET http://{host}/ HTTP/1.1", f"CONNECT {host}:443 HTTP/1.1"):
                assert (await ask(proxy, lease, line)).startswith("HTTP/1.1 502 Refused\r\n")
            assert lease.refusals[host].text == (
                "ERROR blocked_address: this address is not on the public internet."
            )
    assert (len(pub.requests), inner.num_hits) == (1, 0)


@pytest.mark.parametrize(
    "line",
    [
        *("CONNECT pub.test:22 HTTP/1.1", "GET http://pub.test:8080/ HTTP/1.1", "CONNECT x HTTP/9"),
        *("GET /x HTTP/1.1", "GET ftp://pub.test/ HTTP/1.1", "GET http://a@pub.test/ HTTP/1.1"),
        *("GET https://pub.test/ HTTP/1.1", "CONNECT pub.test:443/x:80 HTTP/1.1"),
    ],
)
async def test_nothing_but_the_web_is_reached(pub: Pub, line: str) -> None:
    async with open_proxy(pub) as proxy, lent(proxy) as lease:
        assert (await ask(proxy, lease, line)).startswith("HTTP/1.1 400 Refused\r\n")
    assert pub.requests == []


async def test_what_sites_send_in_one_visit_is_capped(pub: Pub) -> None:
    async with open_proxy(pub, max_wire_bytes=1_000_000) as proxy, lent(proxy) as lease:
        answer = await ask(proxy, lease, "GET http://pub.test/endless HTTP/1.1")
        assert len(answer) < 1_001_000
        assert lease.is_exhausted
        assert (await ask(proxy, lease, "GET http://pub.test/ HTTP/1.1")).startswith(
            "HTTP/1.1 407 Refused\r\n"
        )
        await lease.renew()
        assert (await ask(proxy, lease, "GET http://pub.test/ HTTP/1.1")).startswith(
            "HTTP/1.1 404 "
        )
    assert pub.num_bytes_sent < 10_000_000  # socket buffers included
    assert len(pub.requests) == 2


async def test_the_end_of_a_lease_cuts_its_connections_and_leaves_no_file_open(pub: Pub) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    async with open_proxy(pub) as proxy:
        async with lent(proxy) as lease:
            asking = [
                asyncio.create_task(ask(proxy, lease, "GET http://pub.test/drip HTTP/1.1"))
                for _ in range(5)
            ]
            while lease.num_bytes < 50:
                await asyncio.sleep(0.01)
        assert all("\r\nx\r\n" in answer for answer in await asyncio.gather(*asking))
        assert lease.connections == set()
    if before:  # pub's own ends are there until it notices
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 5)
