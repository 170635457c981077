"""How controller and tool worker speak: JSON behind four bytes of length, over a socket of its own.

Standard input and output belong to the user's code. A conversation:

    controller                                              worker
    {"type": "start", "tools_dir", limits, "browser"} ─▶    imports tools.py
                                    ◀─ {"type": "ready", "tools": [...], "notices": [...]}
                                    or {"type": "unusable", "message": "tools.py:3: …"}, and it ends
    {"type": "call", "id", "name", "arguments",
     "metadata", "rollout", "timeout_s"}                ─▶  any number at once
                                    ◀─ {"type": "answer", "id", "text", "outcome",
                                        "truncated", "counts"}
    {"type": "stop"}                                    ─▶  ends; so does the end of the stream
"""

import asyncio
import json
import socket
from collections.abc import Mapping
from typing import Any

Message = dict[str, Any]
_HEADER_BYTES = 4
_MAX_FRAME_BYTES = 64_000_000  # above anything that is ever sent: a broken stream, not a message


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


async def receive_async(stream: asyncio.StreamReader) -> Message | None:
    """Read one message; None at the end of the stream, and where it is none of ours."""
    try:
        header = await stream.readexactly(_HEADER_BYTES)
        return _parse(await stream.readexactly(_length(header)))
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        return None


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
        raise ValueError(f"a frame of {length} bytes on a tool worker's socket")
    return length


def _parse(body: bytes) -> Message:
    message: Message = json.loads(body)
    return message
