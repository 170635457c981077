"""The tool worker: `python -m rnow.tools.worker`, started by rnow.tools.process.

It imports tools.py before its event loop runs, reads calls in a thread of its own, and leaves the
main thread to the loop: whatever the user's code does to the loop, calls are still read.

What it hears and says (rnow.runtime.channel):

    controller                                              worker
    {"type": "start", "tools_dir", limits,
     "browser", "mcp"}                                  ─▶  imports tools.py, asks MCP servers
                                    ◀─ {"type": "ready", "tools": [...], "notices": [...]}
                                    or {"type": "unusable", "message": "tools.py:3: …"}, and it ends
    {"type": "call", "id", "name", "arguments",
     "metadata", "rollout", "timeout_s"}                ─▶  any number at once
                                    ◀─ {"type": "answer", "id", "text", "outcome",
                                        "truncated", "counts"}
    {"type": "release", "rollout"}                      ─▶  its sessions with MCP servers end
                                    ◀─ {"type": "session", "server", "session", "open"}
    {"type": "end_sessions", "sessions"}                ─▶  what a worker that died has left open
    {"type": "stop"}                                    ─▶  ends; so does the end of the stream
"""

import asyncio
import faulthandler
import inspect
import os
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

from rnow import browser
from rnow.browser import shared
from rnow.errors import ToolDefinitionError
from rnow.runtime.channel import pack, receive, socket_of_worker
from rnow.tools.base import ToolSpec
from rnow.tools.hanging import STACKS_SIGNAL
from rnow.tools.limit import CharacterLimiter, TokenLimiter
from rnow.tools.loader import LoadedTool, load_tools, sandbox_notices
from rnow.tools.mcp.spec import McpSpec
from rnow.tools.runner import CallRunner, Tool

if TYPE_CHECKING:
    from rnow.tools.mcp.tools import McpTool, McpTools

_CLOSE_S = 1.5  # below what the controller waits for the process to end by itself


def main() -> None:
    """Serve calls until told to stop, or until the controller is gone."""
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    line = _Line(socket_of_worker())
    start = line.receive()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    folder = Path(start["tools_dir"])
    loaded: dict[str, LoadedTool] = {}
    servers: McpTools | None = None
    tools: dict[str, Tool] = {}
    try:
        if (folder / "tools.py").is_file() or start["mcp"] is None:
            loaded = load_tools(folder)
        tools |= loaded
        if start["mcp"] is not None:
            opening = _open_servers(start["mcp"], loaded, line)
            servers, found = loop.run_until_complete(opening)
            tools |= found
    except ToolDefinitionError as error:
        line.send({"type": "unusable", "message": str(error)})
        sys.exit(1)
    limiter = TokenLimiter(
        None if start["tokenizer_file"] is None else Path(start["tokenizer_file"]),
        start["max_tokens"],
        max_chars=start["max_chars"],
    )
    _configure_browser(start["browser"], limiter)
    specs = [asdict(tool.spec) for tool in tools.values()]
    line.send({"type": "ready", "tools": specs, "notices": sandbox_notices(loaded)})
    _serve(line, CallRunner(tools, limiter=limiter, loop=loop, reply=line.send), loop, servers)
    try:
        if servers is not None:
            with suppress(TimeoutError):
                loop.run_until_complete(asyncio.wait_for(servers.aclose(), _CLOSE_S))
    finally:
        # Its Chromium ends with it in any case, but left to itself keeps a folder behind.
        with suppress(TimeoutError):
            shared.close()


class _Line:
    """The worker's end of the socket; where nobody is at the other end, the process ends."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._sending = Lock()

    def receive(self) -> dict[str, Any]:
        message = receive(self._stream)
        if message is None:
            os._exit(1)
        return message

    def send(self, message: Mapping[str, Any]) -> None:
        frame = pack(message)
        try:
            with self._sending:
                self._stream.sendall(frame)
        except ConnectionError:
            os._exit(1)


async def _open_servers(
    start: Mapping[str, Any], loaded: Mapping[str, LoadedTool], line: "_Line"
) -> "tuple[McpTools, dict[str, McpTool]]":
    """Reach the MCP servers; with their tools known from before, each at its first call."""
    from rnow.tools.mcp.tools import McpTools, clash

    servers = McpTools(
        [McpSpec.from_json(fields) for fields in start["servers"]],
        per_rollout=start["per_rollout"],
        folder=Path(start["folder"]),
        logs=Path(start["logs"]),
        tell=line.send,
    )
    if start["known"] is None:
        tools = await servers.list_tools()
    else:
        tools = servers.tools_of([ToolSpec.from_json(fields) for fields in start["known"]])
    for name in tools.keys() & loaded.keys():
        function = inspect.unwrap(loaded[name].function)
        place = f"tools.py:{function.__code__.co_firstlineno}"
        await servers.aclose()
        raise ToolDefinitionError(clash(name, place, servers.place_of(tools[name].spec)))
    return servers, tools


def _serve(
    line: _Line,
    runner: CallRunner,
    loop: asyncio.AbstractEventLoop,
    servers: "McpTools | None",
) -> None:
    is_stopped = False

    def stop() -> None:
        nonlocal is_stopped
        is_stopped = True
        loop.stop()

    def read_calls() -> None:
        while (message := line.receive())["type"] != "stop":
            if message["type"] == "call":
                runner.start(message)
            elif servers is not None and message["type"] == "release":
                loop.call_soon_threadsafe(servers.release, message["rollout"])
            elif servers is not None:
                loop.call_soon_threadsafe(servers.end_sessions, message["sessions"])
        loop.call_soon_threadsafe(stop)

    Thread(target=read_calls, daemon=True).start()
    while not is_stopped:  # set by the loop alone: one that never ran would stop what runs next
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):  # from a task that a tool has left behind
            traceback.print_exc()


def _configure_browser(settings: Mapping[str, Any], limiter: TokenLimiter) -> None:
    # JSON knows no tuples.
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
    }
    # Pages are cut by whichever cap there is, so that nothing is lost between two of them.
    by_characters = limiter.max_tokens is None and limiter.max_chars is not None
    browser.configure(
        browser.BrowserSettings(**fields),
        CharacterLimiter(limiter.max_chars) if by_characters else limiter,
    )


if __name__ == "__main__":
    main()
