"""The body of an answer, decompressed while it comes in, so that no bomb can grow in memory."""

import zlib

import aiohttp

from rnow.browser.errors import BrowseError

ACCEPTED_ENCODING = "gzip"
_CHUNK_BYTES = 65_536
_GZIP = 31  # zlib's number for that format


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> tuple[bytes, bool]:
    """Return the decompressed body, and whether that is all of it: reading stops at `max_bytes`.

    The session must not decompress. Raises zlib.error for a body that is broken or ends too early.
    """
    inflater = _inflater(response.headers.get("Content-Encoding", "identity").strip().lower())
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        # One byte more than is wanted shows that there is more, whatever a chunk would grow to.
        room = max_bytes + 1 - len(body)
        body += chunk if inflater is None else inflater.decompress(chunk, room)
        if len(body) > max_bytes:
            return bytes(body[:max_bytes]), False
        if inflater is not None and inflater.eof:
            break
    if inflater is not None and body and not inflater.eof:
        raise zlib.error("the compressed body ends too early")
    return bytes(body), True


def _inflater(encoding: str) -> "zlib._Decompress | None":
    if encoding in ("identity", ""):
        return None
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(_GZIP)
    sentence = "the site sends this page in an unknown encoding."
    raise BrowseError("unsupported_type", sentence, is_lasting=True)
