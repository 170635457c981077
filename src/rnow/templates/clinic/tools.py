"""What the student can do besides talk: read the pages of the local site."""

from rnow import browser
from rnow.core import tool


@tool
async def browse(url: str, page: int = 1) -> str:
    """Read a web page."""
    return await browser.read(url, page=page)
