"""The proxy through which Chromium reaches the web: the guard's rules, where connections are made.

    Chromium ──CONNECT host:443 / GET http://…──▶ ForwardProxy ──▶ the address that was checked

A browser resolves names, follows redirects and loads frames, pictures and scripts by itself; rules
about URLs do not hold it. So it is given no network but this: the proxy resolves each name once,
refuses it if any of its addresses is not public, and dials the very address that it has checked.
It listens on loopback, and answers only whoever knows the password of a tab.

Of https the proxy sees ciphertext: it holds names, addresses and ports, and the number of bytes of
a visit, but nothing that is in them.
"""

import asyncio
import hmac
import re
import secrets
import socket
from base64 import b64encode
from collections.abc import Collection, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
from aiohttp.abc import AbstractResolver

from rnow.browser.errors import BrowseError
from rnow.browser.rules.guard import (
    BlockedAddressError,
    GuardedResolver,
    MayDial,
    check_literal,
    check_url,
    guarded_socket,
    is_public,
)
from rnow.browser.rules.hosts import HostRules
from rnow.browser.rules.refusals import unreachable
from rnow.browser.settings import BrowserSettings
from rnow.runtime.side_by_side import end_tasks

_MAX_HEAD_BYTES = 65_536
_CHUNK_BYTES = 65_536
_HEAD_TIMEOUT_S = 10.0
_REQUEST = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.[01]")
# What concerns one connection alone; the next one is the proxy's own.
_HOP_BY_HOP = re.compile(rb"(?:connection|keep-alive|proxy-[a-z-]+|te|upgrade):", re.IGNORECASE)

_Reader = asyncio.StreamReader
_Writer = asyncio.StreamWriter


@dataclass(slots=True, eq=False)
class Lease:
    """A tab's right to use the proxy, and what came of it in the visit that is going on."""

    username: str
    password: str
    num_visits: int = 1  # the one that is going on counted
    num_bytes: int = 0  # that sites sent, on the wire
    is_exhausted: bool = False  # the cap was reached, and the visit's connections were cut
    refusals: dict[str, BrowseError] = field(default_factory=dict)  # host -> why there was no page
    origins: set[str] = field(default_factory=set)  # host:port, of all that was asked for
    connections: set["asyncio.Task[None]"] = field(default_factory=set)

    async def renew(self) -> None:
        """Cut what the last visit has left open, and count anew."""
        await end_tasks(*self.connections)
        self.num_visits += 1
        self.num_bytes, self.is_exhausted = 0, False
        self.refusals.clear()
        self.origins.clear()

    @property
    def authorization(self) -> bytes:
        return b"Basic " + b64encode(f"{self.username}:{self.password}".encode())


class ForwardProxy:
    """A proxy for HTTP/1.1 on 127.0.0.1.

    lease = proxy.lend()
    Chromium's context uses http://127.0.0.1:{proxy.port} with lease.username and lease.password

    `resolver` and `may_dial` are where a test puts its own network.
    """

    def __init__(
        self,
        settings: BrowserSettings,
        *,
        resolver: AbstractResolver | None = None,
        may_dial: MayDial = lambda address, port: is_public(address),
    ) -> None:
        self.port = 0  # there is one once the proxy is started
        self._settings = settings
        self._hosts = HostRules(settings)
        self._resolver = GuardedResolver(resolver or aiohttp.ThreadedResolver(), may_dial=may_dial)
        self._make_socket = guarded_socket(may_dial)
        self._leases: dict[str, Lease] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, limit=_MAX_HEAD_BYTES
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
        await end_tasks(*self._connections)
        await self._resolver.close()

    def lend(self) -> Lease:
        """Let somebody in, until `take_back`."""
        lease = Lease(username=secrets.token_hex(8), password=secrets.token_hex(16))
        self._leases[lease.username] = lease
        return lease

    async def take_back(self, lease: Lease) -> None:
        """End a lease; all of its connections are cut."""
        self._leases.pop(lease.username, None)
        await end_tasks(*lease.connections)

    def _accept(self, reader: _Reader, writer: _Writer) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name="proxy")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: _Reader, writer: _Writer) -> None:
        """Serve one connection of the browser's: a request, or a tunnel."""
        try:
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                head = await _read_head(reader)
            lease = self._lease_of(head)
            if lease is None:
                writer.write(_answer(407, b'Proxy-Authenticate: Basic realm="rnow"'))
                return
            task = asyncio.current_task()
            assert task is not None
            lease.connections.add(task)
            task.add_done_callback(lease.connections.discard)
            await self._forward(head, lease, reader, writer)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # either side is gone, or never spoke HTTP: nobody is left to be told
        finally:
            writer.close()

    async def _forward(
        self, head: list[bytes], lease: Lease, reader: _Reader, writer: _Writer
    ) -> None:
        """Pass one request on, and its answer back; of a tunnel, all bytes in both directions."""
        request = _parse(head, ports=self._settings.ports)
        if request is None:
            writer.write(_answer(400))
            return
        lease.origins.add(f"{request.host}:{request.port}")
        try:
            site_reader, site_writer = await self._dial(request.host, request.port)
        except BrowseError as error:
            lease.refusals[request.host] = error
            writer.write(_answer(502))
            return
        try:
            if request.is_tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                site_writer.write(_one_message([request.line, *head[1:]]))
            answering = self._answer_from(site_reader, writer, lease, request)
            await _either(_pump(reader, site_writer), answering)
        finally:
            site_writer.close()

    async def _answer_from(
        self, site: _Reader, writer: _Writer, lease: Lease, request: "_Request"
    ) -> None:
        if not request.is_tunnel:
            # Chromium must not send its next request, perhaps for another site, down this line.
            writer.write(_one_message(await _read_head(site)))
        while chunk := await site.read(_CHUNK_BYTES):
            lease.num_bytes += len(chunk)
            if lease.num_bytes > self._settings.max_wire_bytes:
                lease.is_exhausted = True
                return
            writer.write(chunk)
            await writer.drain()

    def _lease_of(self, head: list[bytes]) -> Lease | None:
        for line in head[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"proxy-authorization":
                for lease in self._leases.values():
                    if hmac.compare_digest(value.strip(), lease.authorization):
                        return None if lease.is_exhausted else lease
        return None

    async def _dial(self, host: str, port: int) -> tuple[_Reader, _Writer]:
        """Connect to a checked address of this host; raise BrowseError where that cannot be."""
        local_port = self._hosts.local_port(host)
        if local_port is not None:
            with suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", local_port)
            raise unreachable()
        check_literal(host)
        try:
            answers = await self._resolver.resolve(host, port)
        except BlockedAddressError as error:
            sentence = "this address is not on the public internet."
            raise BrowseError("blocked_address", sentence) from error
        except OSError as error:
            raise BrowseError("unreachable", "there is no such host.") from error
        for answer in answers:
            with suppress(OSError):  # TimeoutError is one
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    return await self._connect((answer["host"], answer["port"]))
        raise unreachable()

    async def _connect(self, address: tuple[str, int]) -> tuple[_Reader, _Writer]:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        connecting = self._make_socket((family, socket.SOCK_STREAM, 0, "", address))
        try:
            connecting.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connecting, address)
            return await asyncio.open_connection(sock=connecting)
        except BaseException:
            connecting.close()
            raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    host: str
    port: int
    is_tunnel: bool
    line: bytes  # as the site is told


def _parse(head: list[bytes], *, ports: Collection[int]) -> _Request | None:
    """Return what a browser asks of the proxy; None where it is nothing that a page may ask for."""
    match = _REQUEST.fullmatch(head[0])
    if match is None:
        return None
    method, target = match[1], match[2].decode("ascii")
    is_tunnel = method == b"CONNECT"
    start = "" if is_tunnel else "http://"
    authority, slash, path = target[len(start) :].partition("/")
    if not target.lower().startswith(start) or (is_tunnel and slash):
        return None
    try:
        url = check_url(f"http://{authority}/", ports=ports)
    except BrowseError:
        return None
    line = b"%s %s HTTP/1.1" % (method, (slash + path).encode() or b"/")
    return _Request(host=url.raw_host or "", port=url.port or 80, is_tunnel=is_tunnel, line=line)


async def _read_head(reader: _Reader) -> list[bytes]:
    """Read the start line and the headers of a message."""
    return (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")


def _one_message(head: list[bytes]) -> bytes:
    """Return a head for the next hop, which ends with this message."""
    kept = [line for line in head if not _HOP_BY_HOP.match(line)]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""])


def _answer(status: int, *headers: bytes) -> bytes:
    start = b"HTTP/1.1 %d Refused" % status
    return b"\r\n".join([start, b"Content-Length: 0", *headers, b"Connection: close", b"", b""])


async def _pump(reader: _Reader, writer: _Writer) -> None:
    while chunk := await reader.read(_CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()


async def _either(*directions: Coroutine[None, None, None]) -> None:
    """Run both until one of them ends, and then neither."""
    tasks = {asyncio.ensure_future(direction) for direction in directions}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_tasks(*tasks)
