"""The body of an answer, unpacked so that no bomb can grow in memory.

Sites pack their pages in ways that nobody asked for, call one packing by another's name, and name
packings that are none. What browsers read is read: several streams one after another, raw and
wrapped deflate, a page that is called packed and is not. What stays bytes is no page.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import aiohttp
import brotli  # type: ignore[import-untyped]  # it ships no types
import zstandard

from rnow.browser.errors import BrowseError
from rnow.browser.kind import looks_binary

ACCEPTED_ENCODING = "gzip"
_CHUNK_BYTES = 65_536
_PIECE_BYTES = 256  # unpacked at once: of zstd these can become 8 MB
_MAX_CODINGS = 5
_MAX_WINDOW_BYTES = 8 << 20  # RFC 9659: what a client of HTTP must be able to hold, and no more
_GZIP_MARK = b"\x1f\x8b"
_ZSTD_MARK = b"\x28\xb5\x2f\xfd"


class _Stream(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> tuple[bytes, bool]:
    """Return the unpacked body, and whether that is all of it: reading stops at `max_bytes`.

    The session must not unpack. Raises BrowseError for a body that cannot be unpacked, or that ends
    too early.
    """
    packed = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        packed += chunk
        if len(packed) > max_bytes:
            break
    named = ",".join(response.headers.getall("Content-Encoding", [])).lower().split(",")
    codings = [name.strip() for name in reversed(named)]
    if codings == [""]:
        return bytes(packed[:max_bytes]), len(packed) <= max_bytes
    return await asyncio.to_thread(_unpacked, bytes(packed), codings, max_bytes)


def _unpacked(body: bytes, codings: list[str], max_bytes: int) -> tuple[bytes, bool]:
    """Undo the codings, the last one first."""
    is_whole = len(body) <= max_bytes
    if len(codings) > _MAX_CODINGS:
        raise _unknown()
    for coding in codings:
        if coding not in _OPENED:
            continue  # "none", "utf-8", "identity": browsers take the body as it is
        try:
            unpacked = bytearray()
            for piece in _pieces(body, coding, max_bytes, is_whole=is_whole):
                unpacked += piece
                if len(unpacked) > max_bytes:
                    is_whole = False
                    break
        except (zlib.error, brotli.error, zstandard.ZstdError) as error:
            sentence = "the site sends this page packed in a way that cannot be undone."
            raise BrowseError("unreadable", sentence) from error
        body = bytes(unpacked)
    if looks_binary(body) and not _OPENED.keys() & codings and set(codings) - {"", "identity"}:
        raise _unknown()
    return body[:max_bytes], is_whole


def _pieces(body: bytes, coding: str, max_bytes: int, *, is_whole: bool) -> Iterator[bytes]:
    """Yield what the streams in `body` hold; what follows the last of them is nothing to a reader.

    A stream that breaks off is an error, unless the body was cut here.
    """
    open_stream = _OPENED[coding](body, max_bytes)
    if open_stream is None or not body:
        yield body
        return
    begin = 0
    while begin == 0 or body[begin : begin + 4].startswith((_GZIP_MARK, _ZSTD_MARK)):
        stream = open_stream()
        while not stream.eof:
            if begin >= len(body):
                if is_whole:
                    raise zlib.error("the packed body ends too early")
                return
            piece = body[begin : begin + _PIECE_BYTES]
            begin += len(piece)
            yield stream.decompress(piece)
        begin -= len(stream.unused_data)


class _Brotli:
    """A stream of brotli; a few bytes of it can be gigabytes, so each answer has a limit."""

    unused_data = b""

    def __init__(self, max_bytes: int) -> None:
        self._inner = brotli.Decompressor()
        self._max_bytes = max_bytes

    @property
    def eof(self) -> bool:
        return bool(self._inner.is_finished())

    def decompress(self, data: bytes, /) -> bytes:
        # An answer that meets the limit ends the reading: the rest of it is never asked for.
        return bytes(self._inner.process(data, output_buffer_limit=self._max_bytes + 1))


def _by_sight(body: bytes, _: int) -> Callable[[], _Stream] | None:
    """Tell gzip and zlib by how they begin, whichever of the two the site says."""
    if body.startswith(_GZIP_MARK):
        return lambda: zlib.decompressobj(31)
    is_zlib = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2]) % 31 == 0
    return (lambda: zlib.decompressobj(15)) if is_zlib else None


def _deflated(body: bytes, max_bytes: int) -> Callable[[], _Stream] | None:
    return _by_sight(body, max_bytes) or (lambda: zlib.decompressobj(-15))


def _zstd(body: bytes, _: int) -> Callable[[], _Stream] | None:
    if not body.startswith(_ZSTD_MARK):
        return None
    unpacker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
    return unpacker.decompressobj


# How a coding's streams are opened, for this body and this limit; None: the body is not packed.
_OPENED: dict[str, Callable[[bytes, int], Callable[[], _Stream] | None]] = {
    "gzip": _by_sight,
    "x-gzip": _by_sight,
    "deflate": _deflated,
    "br": lambda body, max_bytes: lambda: _Brotli(max_bytes),
    "zstd": _zstd,
}


def _unknown() -> BrowseError:
    sentence = "the site sends this page in an unknown encoding."
    return BrowseError("unsupported_type", sentence, is_lasting=True)
