"""The tool worker: `python -m rnow.tools.worker`, started by rnow.tools.process.

It imports tools.py before its event loop runs, reads calls in a thread of its own, and leaves the
main thread to the loop: whatever the user's code does to the loop, calls are still read.
"""

import asyncio
import faulthandler
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from rnow import browser
from rnow.browser import shared
from rnow.errors import ToolDefinitionError
from rnow.tools.limit import CharacterLimiter, TokenLimiter
from rnow.tools.loader import load_tools, sandbox_notices
from rnow.tools.runner import CallRunner
from rnow.tools.wire import pack, receive, socket_of_worker

STACKS_SIGNAL = signal.SIGUSR1  # writes the stacks of all threads to the log


def main() -> None:
    """Serve calls until told to stop, or until the controller is gone."""
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    line = _Line(socket_of_worker())
    start = line.receive()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        tools = load_tools(Path(start["tools_dir"]))
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
    line.send({"type": "ready", "tools": specs, "notices": sandbox_notices(tools)})
    _serve(line, CallRunner(tools, limiter=limiter, loop=loop, reply=line.send), loop)
    # Its Chromium ends with it in any case, but left to itself keeps a folder of its own behind.
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


def _serve(line: _Line, runner: CallRunner, loop: asyncio.AbstractEventLoop) -> None:
    stopping = Event()

    def read_calls() -> None:
        while (message := line.receive())["type"] == "call":
            runner.start(message)
        stopping.set()
        loop.call_soon_threadsafe(loop.stop)

    Thread(target=read_calls, daemon=True).start()
    while not stopping.is_set():
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
