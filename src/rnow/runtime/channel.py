"""How controller and workers speak: JSON behind four bytes of length, over a socket.

The socket is what a worker is born with as standard input, and takes from there before the user's
code runs.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rnow.runtime.child_process import ChildProcess

Message = dict[str, Any]
_HEADER_BYTES = 4
_MAX_FRAME_BYTES = 64_000_000  # above anything that is ever sent: a broken stream, not a message


class Channel:
    """The controller's end: a module of rnow in a child process, and the socket to it."""

    def __init__(
        self,
        process: ChildProcess,
        stream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.process = process
        self._reader, self._writer = stream

    @classmethod
    async def open(
        cls, module: str, *, environment: Mapping[str, str], log_file: Path, folder: Path
    ) -> "Channel":
        """Start `python -m module` in `folder`."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await ChildProcess.start(
                    # -P: the project's own files must not stand before the standard library's.
                    [sys.executable, "-P", "-u", "-m", module],
                    environment=environment,
                    log_file=log_file,
                    folder=folder,
                    stdin=theirs.fileno(),
                )
        except BaseException:
            ours.close()
            raise
        try:
            return cls(process, await asyncio.open_connection(sock=ours))
        except BaseException:
            ours.close()
            await process.kill()
            raise

    async def send(self, message: Mapping[str, Any]) -> None:
        """Raises ConnectionError where nobody is at the other end."""
        self.post(message)
        await self._writer.drain()

    def post(self, message: Mapping[str, Any]) -> None:
        """Send without waiting for anything, nor for whether anybody is at the other end."""
        # asyncio logs what is written to a socket that is closed.
        if not self._writer.transport.is_closing():
            self._writer.write(pack(message))

    async def receive(self) -> Message | None:
        """Read one message; None at the end of the stream, and where it is none of ours."""
        try:
            header = await self._reader.readexactly(_HEADER_BYTES)
            return _parse(await self._reader.readexactly(_length(header)))
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            return None

    async def close(self) -> None:
        """Kill the process and its group, and drop the socket."""
        try:
            await self.process.kill()
        finally:
            # Nobody waits for the close: that wait is one future for all who ask, and the first
            # of them that is cancelled would cancel it for the others.
            self._writer.transport.abort()


def socket_of_worker() -> socket.socket:
    """Return the worker's end, and leave nothing on standard input for the user's code to read."""
    taken = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return socket.socket(fileno=taken)


def pack(message: Mapping[str, Any]) -> bytes:
    """Return the frame of a message. ASCII, so that lone surrogates of a model's JSON survive."""
    body = json.dumps(message).encode("ascii")
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


def receive(stream: socket.socket) -> Message | None:
    """Read one message; None at the end of the stream."""
    header = _receive_exactly(stream, _HEADER_BYTES)
    if header is None:
        return None
    body = _receive_exactly(stream, _length(header))
    return None if body is None else _parse(body)


def _receive_exactly(stream: socket.socket, num_bytes: int) -> bytes | None:
    received = bytearray()
    while len(received) < num_bytes:
        try:
            piece = stream.recv(min(num_bytes - len(received), 1 << 20))
        except ConnectionError:
            return None
        if not piece:
            return None
        received += piece
    return bytes(received)


def _length(header: bytes) -> int:
    length = int.from_bytes(header, "big")
    if length > _MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {length} bytes on a worker's socket")
    return length


def _parse(body: bytes) -> Message:
    message: Message = json.loads(body)
    return message
