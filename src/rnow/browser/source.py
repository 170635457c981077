"""The seam between the browser and whatever gets it pages."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from yarl import URL

from rnow.browser.kind import is_html, text_of

if TYPE_CHECKING:
    from rnow.browser.rules.hosts import AllowedUrl  # brings aiohttp


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

    @property
    def is_html(self) -> bool:
        return is_html(self.content_type)

    def text(self) -> str:
        """Return the body as text; what cannot be decoded becomes U+FFFD."""
        return text_of(self.body, kind=self.content_type, charset=self.charset)


class PageSource(Protocol):
    """Gets pages. `fetch` returns the page of a checked URL, or raises BrowseError."""

    async def fetch(self, url: "AllowedUrl") -> RawPage: ...

    async def aclose(self) -> None: ...
