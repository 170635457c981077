"""One session with one MCP server, entered and left by a task of its own.

The SDK's task groups must be left by the task that entered them, and end that task when a
connection breaks. Calls come from other tasks, which wait for their answer or for the owner's end,
whichever is first.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import UNSUPPORTED_PROTOCOL_VERSION, CallToolResult, Tool

from rnow.runtime.deadline import within
from rnow.tools.mcp.transport import CONNECT_S, Connection

_log = logging.getLogger(__name__)
_CLOSE_S = 5.0
_MAX_PAGES = 100  # of a list of tools


class SessionLost(Exception):
    """The session is over: what the server kept in it is gone."""


class Unreachable(Exception):
    """No session could be opened."""


class CallFailed(Exception):
    """The server did not run the tool; the session goes on."""


class McpSession:
    """Open from its making until `close`, or until the server ends it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        spec = self._spec = connection.spec
        self._client: Client | None = None
        self._settled = asyncio.Event()  # opened, or failed to
        self._closing = asyncio.Event()
        self._why = ""
        self._owner = asyncio.create_task(self._live(), name=f"{spec.label}: session")

    @property
    def is_over(self) -> bool:
        return self._owner.done() or self._closing.is_set()

    async def list_tools(self) -> list[Tool]:
        """Return all tools that the server has. Raises Unreachable."""
        client = await self._opened()
        tools: list[Tool] = []
        cursor: str | None = None
        async with within(CONNECT_S, f"{self._spec.label}: its list of tools"):
            for _ in range(_MAX_PAGES):
                try:
                    page = await client.list_tools(cursor=cursor)
                except Exception as error:  # of the SDK, of what a foreign server sent
                    raise Unreachable(self.connection.why(error)) from None
                tools += page.tools
                cursor = page.next_cursor
                if cursor is None:
                    return tools
        raise Unreachable(f"its list of tools has more than {_MAX_PAGES} pages")

    async def call(self, name: str, arguments: Mapping[str, Any]) -> CallToolResult:
        """Run a tool. Raises CallFailed, SessionLost or Unreachable."""
        client = await self._opened()
        calling = asyncio.create_task(client.call_tool(name, dict(arguments)))
        try:
            await asyncio.wait({calling, self._owner}, return_when=asyncio.FIRST_COMPLETED)
            if not calling.done() or calling.cancelled():
                raise SessionLost(self._why or "it was closed")
            failure = calling.exception()
            if failure is None:
                return calling.result()
            if self._owner.done() or self.connection.ends_session(failure):
                raise SessionLost(self._why or self.connection.why(failure))
            if isinstance(failure, MCPError):
                raise CallFailed(self._spec.scrub(failure.message))
            text = self._spec.scrub(str(failure)).partition("\n")[0]
            raise CallFailed(f"the server answered in a form that is not allowed: {text}")
        finally:
            calling.cancel()
            calling.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def close(self) -> None:
        """Leave the session, and end the server where it is a command."""
        self._closing.set()
        if not (await asyncio.wait({self._owner}, timeout=_CLOSE_S))[0]:
            _log.warning("%s: its session could not be closed in %g s", self._spec.label, _CLOSE_S)
            self._owner.cancel()
            await asyncio.wait({self._owner}, timeout=_CLOSE_S)

    async def _opened(self) -> Client:
        async with within(2 * CONNECT_S, f"{self._spec.label}: a session"):
            await self._settled.wait()
        if self._client is None:
            raise Unreachable(self._why)
        return self._client

    async def _live(self) -> None:
        try:
            try:
                await self._stay("legacy")
            except (MCPError, ExceptionGroup) as error:
                # The handshake opens a session, where a server keeps state; servers that know none
                # any more say so.
                if self._client or _code_of(error) != UNSUPPORTED_PROTOCOL_VERSION:
                    raise
                await self._stay("auto")
        except BaseException as error:  # of the SDK, of the network, of foreign servers
            self._why = self.connection.why(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            self._settled.set()

    async def _stay(self, mode: str) -> None:
        async with AsyncExitStack() as stack:
            async with within(CONNECT_S, f"{self._spec.label}: its start"):
                client = Client(self.connection.open(), mode=mode, cache=None)
                self._client = await stack.enter_async_context(client)
            self._settled.set()
            await self._closing.wait()


def _code_of(error: BaseException) -> int | None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error.code if isinstance(error, MCPError) else None
