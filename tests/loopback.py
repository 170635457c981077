"""Servers on loopback for tests of rnow.browser, and a browser that may read some of them.

"pub" is a site that may be read; "inner" counts connections and must see none.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from socket import AF_UNSPEC, AddressFamily
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from rnow.browser import BrowserSettings
from rnow.browser.http import HttpSource
from rnow.browser.reader import Browser
from rnow.browser.rules.guard import is_public

Answers = list[tuple[str, int]]  # (address, port) of a name


class Pub:
    """A site with a handler for each path; keeps the requests."""

    def __init__(self) -> None:
        self.port = 0
        self.requests: list[web.BaseRequest] = []
        self.pages: dict[str, Callable[[web.BaseRequest], web.StreamResponse]] = {}
        self.num_bytes_sent = 0
        self.server = web.Server(self.answer)

    @property
    def num_connections(self) -> int:
        return len(self.server.connections)

    def page(self, path: str, html: str, **kwargs: Any) -> None:
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


class Inner(asyncio.DatagramProtocol):
    """A server that nobody may reach, on 127.0.0.2, 127.0.0.1 and, where there is one, ::1."""

    def __init__(self) -> None:
        self.port = 0
        self.num_hits = 0
        self.ways: set[str] = set()  # that it was reached in: http, websocket, tls, stun, quic

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_hits += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                self.ways.add(_way_of(await reader.read(4_096)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>secret")
        writer.close()

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.num_hits += 1
        self.ways.add("quic" if data[0] & 0xC0 == 0xC0 else "stun")


def _way_of(start: bytes) -> str:
    if start.startswith(b"\x16"):
        return "tls"
    return "websocket" if b"upgrade: websocket" in start.lower() else "http"


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


@asynccontextmanager
async def serve_pub() -> AsyncIterator[Pub]:
    site = Pub()
    runner = web.ServerRunner(site.server, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.port = runner.addresses[0][1]
    try:
        yield site
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve_inner() -> AsyncIterator[Inner]:
    server = Inner()
    async with AsyncExitStack() as stack:
        loop = asyncio.get_running_loop()
        for address in ("127.0.0.2", "127.0.0.1", "::1"):
            try:
                listening = await asyncio.start_server(server.answer, address, server.port)
            except OSError:  # no IPv6 here; or only 127.0.0.1 (macOS): then that one is hit
                continue
            await stack.enter_async_context(listening)
            server.port = listening.sockets[0].getsockname()[1]
            datagrams, _ = await loop.create_datagram_endpoint(
                lambda: server, local_addr=(address, server.port)
            )
            stack.callback(datagrams.close)
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
