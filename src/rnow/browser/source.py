"""The seam between the browser and whatever gets it pages."""

import codecs
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from yarl import URL

if TYPE_CHECKING:
    from rnow.browser.rules.hosts import AllowedUrl  # brings aiohttp

# The web's encodings. Python knows others, which are no encodings of text (zlib) or slow (idna).
_CHARSET = re.compile(
    r"utf-?(8|16|16le|16be)|us-ascii|ascii|iso-?8859-?\d+|latin-?1|windows-?125\d|cp125\d|koi8-[ru]"
    r"|gb2312|gbk|gb18030|big5|shift[_-]jis|euc-(jp|kr)"
)
_META = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([a-z0-9_-]+)""", re.IGNORECASE)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawPage:
    """What a site answered with.

    RawPage(url=URL("https://…/"), status=200, content_type="text/html", charset=None, body=b"…")

    `source` says who got it, and with that how it is read: an adapter's answer is data.
    """

    url: URL  # after redirects
    status: int
    content_type: str  # lower case, without parameters
    charset: str | None  # as the header names it
    body: bytes  # decompressed
    source: str = "http"
    is_stored: bool = False  # it comes from the page store, not from the site

    def text(self) -> str:
        """Return the body as text; what cannot be decoded becomes U+FFFD."""
        for mark, charset in _BYTE_ORDER_MARKS:
            if self.body.startswith(mark):
                return self.body[len(mark) :].decode(charset, errors="replace")
        declared = _META.search(self.body[:4_096])
        named = (self.charset, declared[1].decode() if declared else None)
        for name in named:
            if name is not None and _CHARSET.fullmatch(name.lower()):
                return self.body.decode(name, errors="replace")
        return self.body.decode("utf-8", errors="replace")


class PageSource(Protocol):
    """Gets pages. `fetch` returns the page of a checked URL, or raises BrowseError."""

    async def fetch(self, url: "AllowedUrl") -> RawPage: ...

    async def aclose(self) -> None: ...
