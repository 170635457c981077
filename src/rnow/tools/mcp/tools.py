"""The tools of a project's MCP servers, as a worker runs them.

    open ─▶ a session each ─▶ list of tools ─▶ checked, with the names of tools.py
    call ─▶ the rollout's session, opened at its first call ─▶ text
    release ─▶ the rollout's sessions are closed

With `rollout.mcp_session: run` all rollouts of a worker share a session, which is never released.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import SchemaError
from jsonschema.validators import Draft202012Validator, validator_for
from mcp_types import Tool

from rnow.core.counts import count
from rnow.errors import DeadlineError, ToolDefinitionError
from rnow.tools.base import ToolSchema, ToolSpec
from rnow.tools.mcp.content import text_of
from rnow.tools.mcp.session import CallFailed, McpSession, SessionLost, Unreachable
from rnow.tools.mcp.spec import McpCallError, McpSpec
from rnow.tools.mcp.transport import Connection

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # the protocol's own rule


@dataclass(frozen=True, slots=True, kw_only=True)
class McpTool:
    """A tool of a server; looks to a worker like one of tools.py."""

    spec: ToolSpec
    owner: "McpTools"

    async def invoke(
        self, arguments: Mapping[str, Any], *, metadata: Mapping[str, Any], rollout: str
    ) -> str:
        return await self.owner.call(self.spec, arguments, rollout=rollout)


class McpTools:
    """All servers of a worker, and the sessions that it has with them."""

    def __init__(
        self,
        servers: Sequence[McpSpec],
        *,
        per_rollout: bool,
        folder: Path,
        logs: Path,
        tell: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._servers = tuple(servers)
        self._per_rollout = per_rollout
        self._folder = folder  # of the project: commands run there
        self._logs = logs
        self._tell = tell  # of sessions that would be left, did this process die
        self._sessions: dict[tuple[int, str], McpSession] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def list_tools(self) -> dict[str, McpTool]:
        """Ask all servers, side by side. Raises ToolDefinitionError for the first that is unfit."""
        listed = await asyncio.gather(
            *(self._list_of(server) for server in range(len(self._servers))),
            return_exceptions=True,
        )
        try:
            specs: list[ToolSpec] = []
            for found in listed:
                if isinstance(found, BaseException):
                    raise found
                specs += found
            return self.tools_of(specs)
        except BaseException:
            await self.aclose()
            raise

    def tools_of(self, specs: Sequence[ToolSpec]) -> dict[str, McpTool]:
        """Return the tools by name. Raises ToolDefinitionError where two have the same."""
        by_name: dict[str, McpTool] = {}
        for spec in specs:
            name = spec.schema.name
            if name in by_name:
                other = by_name[name].spec
                raise ToolDefinitionError(clash(name, self.place_of(spec), self.place_of(other)))
            by_name[name] = McpTool(spec=spec, owner=self)
        return by_name

    def place_of(self, spec: ToolSpec) -> str:
        assert spec.server is not None
        return self._servers[spec.server].label

    async def call(self, spec: ToolSpec, arguments: Mapping[str, Any], *, rollout: str) -> str:
        """Return the result as text. Raises McpCallError for whatever there is no result of."""
        assert spec.server is not None
        label = self._servers[spec.server].label.rpartition(": ")[2]
        session = self._session(spec.server, rollout)
        try:
            result = await session.call(spec.schema.name, arguments)
        except (Unreachable, DeadlineError) as error:
            self._forget(spec.server, rollout, session)
            count("mcp/unreachable")
            raise McpCallError(f"{label} cannot be reached: {error}") from None
        except SessionLost as error:
            self._forget(spec.server, rollout, session)
            count("mcp/lost_sessions")
            raise McpCallError(f"The session with {label} was lost: {error}. {LOST}") from None
        except CallFailed as error:
            raise McpCallError(str(error)) from None
        text = self._servers[spec.server].scrub(text_of(result))
        if result.is_error:
            raise McpCallError(text)
        return text

    def release(self, rollout: str) -> None:
        """Close the rollout's sessions, later."""
        for server in range(len(self._servers)):
            if self._per_rollout:
                self._forget(server, rollout)

    def end_sessions(self, sessions: Sequence[tuple[int, str]]) -> None:
        """Close, later, what another worker held when it died."""
        for server, session_id in sessions:
            self._later(self._connect(server).end_session(session_id))

    async def aclose(self) -> None:
        """Close all sessions."""
        for server, rollout in list(self._sessions):
            self._forget(server, rollout)
        if self._closing:
            await asyncio.wait(self._closing)

    def _session(self, server: int, rollout: str) -> McpSession:
        key = self._key(server, rollout)
        session = self._sessions.get(key)
        if session is not None and session.is_over and not self._per_rollout:
            session = None
        if session is None:
            session = self._sessions[key] = self._open(server)
        return session

    def _open(self, server: int) -> McpSession:
        connection = self._connect(server)
        told = {"type": "session", "server": server, "open": True}
        connection.on_session = lambda session_id: self._tell({**told, "session": session_id})
        return McpSession(connection)

    def _connect(self, server: int) -> Connection:
        log_file = self._logs / f"mcp-{server + 1}.log"
        return Connection(self._servers[server], folder=self._folder, log_file=log_file)

    def _forget(self, server: int, rollout: str, of: McpSession | None = None) -> None:
        """Close a session; `of`: only this one, not what came in its place."""
        key = self._key(server, rollout)
        session = self._sessions.get(key)
        if session is not None and of in (None, session):
            del self._sessions[key]
            self._later(self._close(server, session))

    async def _close(self, server: int, session: McpSession) -> None:
        await session.close()
        if session.connection.session_id is not None:
            told = {"type": "session", "server": server, "open": False}
            self._tell({**told, "session": session.connection.session_id})

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _key(self, server: int, rollout: str) -> tuple[int, str]:
        return server, rollout if self._per_rollout else ""

    async def _list_of(self, server: int) -> list[ToolSpec]:
        spec = self._servers[server]
        session = self._sessions[self._key(server, "")] = self._open(server)
        try:
            tools = await session.list_tools()
        except (Unreachable, DeadlineError) as error:
            raise ToolDefinitionError(
                f"{spec.label} cannot be reached: {error}; start it, or take it out of "
                "rollout.mcp_url"
            ) from None
        if self._per_rollout:
            self._forget(server, "")
        return [_spec_of(tool, server) for tool in _wanted(spec, tools)]


LOST = "What it kept is gone; the next call begins anew."


def clash(name: str, place: str, other: str) -> str:
    return (
        f"{place} has a tool {name!r}, and so has {other}; rename one, or leave one out with "
        "`tools:` of its server (docs/mcp.md)"
    )


def _wanted(spec: McpSpec, tools: Sequence[Tool]) -> list[Tool]:
    """Return the tools that the config asks for, each one fit for a model."""
    names = [tool.name for tool in tools]
    for name in spec.tools or ():
        if name not in names:
            raise ToolDefinitionError(
                f"{spec.label} has no tool {name!r}, which its `tools:` names; it has "
                f"{', '.join(repr(name) for name in names)}"
            )
    wanted = [tool for tool in tools if spec.tools is None or tool.name in spec.tools]
    for tool in wanted:
        why = _unfit(tool)
        if why is not None:
            raise ToolDefinitionError(
                f"{spec.label}: its tool {tool.name!r} {why}; leave it out with `tools:`"
            )
    return wanted


def _unfit(tool: Tool) -> str | None:
    if not _NAME.fullmatch(tool.name):
        return "has a name that is not of letters, digits and _.-, 128 at most"
    try:
        kind = validator_for(tool.input_schema, default=Draft202012Validator)
        kind.check_schema(tool.input_schema)
    except (SchemaError, RecursionError) as error:
        what = error.message if isinstance(error, SchemaError) else "it is nested too deeply"
        return f"has a schema that is none: {what:.200}"
    return None


def _spec_of(tool: Tool, server: int) -> ToolSpec:
    schema = ToolSchema(
        name=tool.name,
        description=tool.description or tool.title or tool.name,
        parameters=tool.input_schema,
    )
    # A hint that it is read-only is the server's word, and the session that it was made in is gone
    # with the worker: no call is repeated.
    return ToolSpec(schema=schema, timeout_s=None, is_async=True, read_only=False, server=server)
