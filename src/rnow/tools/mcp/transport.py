"""The three ways to an MCP server: a command's standard streams, streamable HTTP, SSE.

Over HTTP the SDK's own transports are used, with one client of ours under them: it asks for no
compression and ends a reply that is too long. A command is started by us, not by the SDK: its
server would outlive a killed worker. All three end the session where a message is too long.
"""

import asyncio
import functools
import logging
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
from mcp.client import Transport
from mcp.client.sse import sse_client
from mcp.client.stdio import get_default_environment
from mcp.client.streamable_http import MCP_SESSION_ID, streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from mcp_types import CONNECTION_CLOSED, jsonrpc_message_adapter

from rnow.errors import DeadlineError
from rnow.runtime.child_process import ChildProcess, how_it_ended
from rnow.runtime.deadline import within
from rnow.tools.mcp.spec import McpSpec

_Streams = tuple[Any, Any]  # of messages, as the SDK's Transport gives them: to read, to write
_log = logging.getLogger(__name__)
# A tools.py may turn logging on, and theirs has whole URLs; what matters of it, errors say here.
for _name in ("mcp", "httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
MAX_MESSAGE_BYTES = 16_000_000
CONNECT_S = 60.0  # npx may have to download what it runs
_NO_READ_LIMIT_S = 10.0 * 365 * 86_400  # each call has a deadline of its own
_EOF_GRACE_S = 1.0  # for a server to end once its input has
_TERM_GRACE_S = 1.0  # and after SIGTERM
_MAX_QUOTED_CHARS = 300
_TOO_LONG = f"it sent a message of more than {MAX_MESSAGE_BYTES // 1_000_000} MB"


class Connection:
    """A way to one server, and what is known of why it failed."""

    def __init__(self, spec: McpSpec, *, folder: Path, log_file: Path) -> None:
        self.spec = spec
        self.session_id: str | None = None  # over HTTP, where the server keeps state
        self.on_session: Callable[[str], None] = lambda _: None  # is told of it
        self._folder = folder
        self._log_file = log_file
        self._log_start = log_file.stat().st_size if log_file.exists() else 0
        self._status: int | None = None  # of the last HTTP reply, where it was an error
        self._ended: int | None = None  # how the command ended
        self._fault: str | None = None  # what was wrong with what it sent

    def open(self) -> Transport:
        if self.spec.url is None:
            return self._stdio()
        if self.spec.is_sse:
            return sse_client(
                self.spec.url,
                timeout=CONNECT_S,
                sse_read_timeout=_NO_READ_LIMIT_S,
                httpx_client_factory=self._client,
            )
        return self._http(self.spec.url)

    def ends_session(self, error: BaseException) -> bool:
        """Say whether a call that failed so is the session's last."""
        if isinstance(error, MCPError):
            return error.code == CONNECTION_CLOSED or self._status == 404
        return isinstance(error, anyio.ClosedResourceError | anyio.BrokenResourceError)

    async def end_session(self, session_id: str) -> None:
        """Close a session that whoever held it can no longer close."""
        assert self.spec.url is not None
        what = f"{self.spec.label}: the end of a session that was left"
        with suppress(httpx2.HTTPError, DeadlineError):
            async with within(CONNECT_S, what), self._client() as client:
                await client.delete(self.spec.url, headers={MCP_SESSION_ID: session_id})

    def why(self, error: BaseException) -> str:
        """Say why it failed, in words that hold no URL and no secret."""
        if self._fault is not None:
            return self._fault
        if self._ended is not None:
            return f"it ended ({how_it_ended(self._ended)}); {self._printed()}"
        if self._status is not None:
            is_lost = self._status == 404 and self.session_id is None
            hint = "; is the path of its url right? It is often /mcp" if is_lost else ""
            return f"it answered with HTTP status {self._status}{hint}"
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, httpx2.TransportError):
            return f"{type(error).__name__}: {self.spec.scrub(str(error))}".removesuffix(": ")
        return self.spec.scrub(str(error)) or type(error).__name__

    @asynccontextmanager
    async def _http(self, url: str) -> AsyncIterator[_Streams]:
        async with (
            self._client() as client,
            streamable_http_client(
                url, http_client=client, max_sse_event_size=MAX_MESSAGE_BYTES
            ) as streams,
        ):
            yield streams

    def _client(
        self,
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        """As the SDK wants it made; what it would set is set here."""

        async def note(response: httpx2.Response) -> None:
            given = response.headers.get(MCP_SESSION_ID)
            if given is not None and self.session_id is None:
                self.session_id = given
                self.on_session(given)
            if response.request.method == "POST" or self.spec.is_sse:
                self._status = response.status_code if response.status_code >= 400 else None

        def too_long() -> None:
            self._fault = _TOO_LONG

        return httpx2.AsyncClient(
            headers={**self.spec.headers, "Accept-Encoding": "identity"},
            timeout=httpx2.Timeout(CONNECT_S, read=None),
            transport=_CappedTransport(too_long),
            event_hooks={"response": [note]},
            trust_env=False,  # ~/.netrc has keys of other programs
        )

    @asynccontextmanager
    async def _stdio(self) -> AsyncIterator[_Streams]:
        process, (reader, writer) = await self._start()
        to_session, inbox = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        outbox, from_session = anyio.create_memory_object_stream[SessionMessage](0)

        async def read() -> None:
            async with to_session:
                with suppress(ConnectionError, anyio.BrokenResourceError):
                    try:
                        while line := await reader.readline():
                            message = _parse(line)
                            if message is not None:
                                await to_session.send(message)
                    except ValueError:  # of readline alone
                        self._fault = _TOO_LONG

        async def write() -> None:
            async with from_session:
                with suppress(ConnectionError):
                    async for message in from_session:
                        body = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                        writer.write(body.encode() + b"\n")
                        await writer.drain()

        async def watch() -> None:
            self._ended = await process.wait()
            await asyncio.sleep(_EOF_GRACE_S)  # a child of its may hold its output open for ever
            reader.feed_eof()

        try:
            async with inbox, outbox, anyio.create_task_group() as group:
                for task in (read, write, watch):
                    group.start_soon(task)
                yield inbox, outbox
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                ended = await _end(process, writer)
                self._ended = ended if self._ended is None else self._ended

    async def _start(
        self,
    ) -> tuple[ChildProcess, tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        program, *args = self.spec.command
        if "/" in program:
            program = str(self._folder / program)
        environment = get_default_environment() | dict(self.spec.env)
        if shutil.which(program, path=environment.get("PATH")) is None:
            raise FileNotFoundError(f"there is no program {program}; install it, or give its path")
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await ChildProcess.start(
                    [program, *args],
                    environment=environment,
                    log_file=self._log_file,
                    folder=self._folder,
                    stdin=theirs.fileno(),
                    answers_to_stdin=True,
                )
        except BaseException:
            ours.close()
            raise
        try:
            return process, await asyncio.open_connection(sock=ours, limit=MAX_MESSAGE_BYTES)
        except BaseException:
            await process.kill()
            raise

    def _printed(self) -> str:
        text = self._log_file.read_bytes()[self._log_start :].decode(errors="replace").strip()
        text = self.spec.scrub(text)
        return f"it printed: {text[-_MAX_QUOTED_CHARS:]}" if text else "it printed nothing"


async def _end(process: ChildProcess, writer: asyncio.StreamWriter) -> int | None:
    """Close the server's input; ask it to end where it does not; then kill it.

    Return how it ended by itself, None where it had to be asked.
    """
    try:
        with suppress(OSError, TimeoutError):
            writer.write_eof()
            async with asyncio.timeout(_EOF_GRACE_S):
                return await process.wait()
        return None
    finally:
        writer.transport.abort()
        await process.end(grace_s=_TERM_GRACE_S)


def _parse(line: bytes) -> SessionMessage | None:
    """Read one message; None for what a server prints beside them."""
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError:
        _log.warning("a line on an MCP server's output that is no message: %.200r", line)
        return None


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    return httpx2.create_ssl_context()  # a third of a second of a busy machine


class _CappedTransport(httpx2.AsyncHTTPTransport):
    """Ends a reply that is longer than a message may be; the SDK does it for streams of events."""

    def __init__(self, too_long: Callable[[], None]) -> None:
        super().__init__(verify=_ssl_context())
        self._too_long = too_long

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.RemoteProtocolError("it compresses, though it was asked not to")
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            return response
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Capped(response.stream, self._too_long)
        return response


class _Capped(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, too_long: Callable[[], None]) -> None:
        self._stream = stream
        self._too_long = too_long

    async def __aiter__(self) -> AsyncIterator[bytes]:
        num_bytes = 0
        async for piece in self._stream:
            num_bytes += len(piece)
            if num_bytes > MAX_MESSAGE_BYTES:
                self._too_long()
                raise httpx2.ReadError(_TOO_LONG)
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()
