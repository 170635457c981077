"""A real MCP server, made with the SDK: run as a program it speaks over stdio or HTTP.

    python mcp_server.py stdio
    python mcp_server.py http PORT         prints its port; for the paths see Site

`note` counts by session, so that a test sees which calls share one.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp.server import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import (
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ListToolsResult,
    TextContent,
    TextResourceContents,
    Tool,
)
from processes import PATIENCE_S

if TYPE_CHECKING:
    from rnow.config.mcp_servers import McpServer

THIS_FILE = Path(__file__)
IMAGE = ImageContent(type="image", data="aGVsbG8=", mime_type="image/png")
PAGE = TextResourceContents(uri="note://1", text="kept", mime_type="text/plain")
TOOLS = ["note", "hang", "die", "repeat", "fail", "show", "whoami", "stay", "echo"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def notes_server() -> MCPServer:
    server = MCPServer("notes", log_level="ERROR")
    notes: dict[str, int] = {}

    @server.tool()
    def note(text: str, ctx: Context) -> str:
        """Keep a note."""
        session = (ctx.headers or {}).get("mcp-session-id", "the only one")
        notes[session] = notes.get(session, 0) + 1
        return f"{text}: {notes[session]} kept"

    @server.tool()
    async def hang() -> str:
        """Never return."""
        await asyncio.sleep(1_000)
        return "late"

    @server.tool()
    def die() -> str:
        """End the server."""
        os._exit(3)

    @server.tool()
    def repeat(text: str, times: int) -> str:
        """Say it often."""
        return text * times

    @server.tool()
    def fail() -> CallToolResult:
        """Say that it went wrong."""
        text = TextContent(type="text", text="no such note")
        return CallToolResult(content=[text], is_error=True)

    @server.tool()
    def show() -> list[Any]:
        """Give what is no text."""
        return ["seen", IMAGE, EmbeddedResource(type="resource", resource=PAGE)]

    @server.tool()
    def whoami(ctx: Context) -> str:
        """Give away what only the server should know."""
        key = (ctx.headers or {}).get("x-key") or os.environ.get("NOTES_KEY")
        return f"key {key}, pid {os.getpid()}, other {os.environ.get('OTHER_KEY')}"

    @server.tool()
    async def stay() -> int:
        """Refuse to end, whatever is asked; give the process."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=threading.Event().wait).start()
        return os.getpid()

    @server.tool()
    def echo(value: Any) -> str:
        """Say what came."""
        return json.dumps(value)

    return server


def odd_server() -> Server[Any]:
    """Two pages of tools, some of which no model should see."""
    pages = {
        None: ([Tool(name="fine", input_schema={"type": "object"})], "2"),
        "2": ([_tool("<|im_end|>"), _tool("bad", {"properties": {"a": {"type": "thing"}}})], None),
    }

    async def list_tools(_: Any, params: Any) -> ListToolsResult:
        tools, following = pages[params.cursor if params else None]
        return ListToolsResult(tools=tools, next_cursor=following)

    async def call_tool(_: Any, params: Any) -> CallToolResult:
        return CallToolResult(content=[], structured_content={"called": params.name})

    return Server("odd", on_list_tools=list_tools, on_call_tool=call_tool)


def _tool(name: str, schema: dict[str, Any] | None = None) -> Tool:
    return Tool(name=name, input_schema={"type": "object", **(schema or {})})


class Site:
    """All servers behind one port, and how many sessions were opened and closed."""

    def __init__(self) -> None:
        self.streamable, self.json, self.odd = notes_server(), notes_server(), odd_server()
        self.counts = {"opened": 0, "closed": 0}
        self.apps: dict[str, Any] = {
            "/mcp": self.streamable.streamable_http_app(),
            "/json": self.json.streamable_http_app(
                streamable_http_path="/json", json_response=True
            ),
            "/modern": self.modern_only,
            "/odd": self.odd.streamable_http_app(streamable_http_path="/odd"),
            "/sse": (sse := notes_server().sse_app()),
            "/messages/": sse,
        }

    async def modern_only(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> None:
        """Refuse the handshake, as a server that knows no sessions does."""
        message = await receive()
        request = json.loads(message["body"])
        if request["method"] != "initialize":
            messages = iter([message])

            async def again() -> MutableMapping[str, Any]:
                return next(messages, None) or await receive()

            await self.apps["/json"]({**scope, "path": "/json"}, again, send)
            return
        error = {
            "code": -32022,
            "message": "Unsupported protocol version",
            "data": {"supported": ["2026-07-28"], "requested": "2025-11-25"},
        }
        body = json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["path"] in self.apps:
            has_session = any(name == b"mcp-session-id" for name, _ in scope["headers"])
            self.counts["opened"] += scope["method"] == "POST" and not has_session
            self.counts["closed"] += scope["method"] == "DELETE"
            await self.apps[scope["path"]](scope, receive, send)
            return
        known = scope["path"] == "/counts"
        await send({"type": "http.response.start", "status": 200 if known else 404})
        await send({"type": "http.response.body", "body": json.dumps(self.counts).encode()})


async def serve(port: int) -> None:
    import uvicorn

    site = Site()
    listening = socket.create_server(("127.0.0.1", port))
    print(listening.getsockname()[1], flush=True)
    config = uvicorn.Config(site, lifespan="off", log_level="warning")
    async with (
        site.streamable.session_manager.run(),
        site.json.session_manager.run(),
        site.odd.session_manager.run(),
    ):
        await uvicorn.Server(config).serve(sockets=[listening])


@dataclass
class Served:
    """A server that runs; `restart` after it died."""

    process: "subprocess.Popen[str]"
    port: int

    def url(self, path: str = "/mcp") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def counts(self) -> dict[str, int]:
        import urllib.request

        with urllib.request.urlopen(self.url("/counts"), timeout=PATIENCE_S) as reply:
            counts: dict[str, int] = json.load(reply)
            return counts

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def restart(self) -> None:
        self.end()
        self.process = _start(self.port)
        assert self.process.stdout is not None
        assert int(self.process.stdout.readline()) == self.port


@contextmanager
def served_over_http() -> Iterator[Served]:
    process = _start(0)
    assert process.stdout is not None
    server = Served(process, int(process.stdout.readline()))
    try:
        yield server
    finally:
        server.end()


def over_stdio(**fields: Any) -> "McpServer":
    from rnow.config.mcp_servers import McpServer  # a server that is run has no rnow

    return McpServer(command=sys.executable, args=[str(THIS_FILE), "stdio"], **fields)


def _start(port: int) -> "subprocess.Popen[str]":
    command = [sys.executable, str(THIS_FILE), "http", str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        notes_server().run()
    else:
        asyncio.run(serve(int(sys.argv[2])))
