"""Pages that say "you are a program": never content, and nothing is done to get around them."""

import re

from rnow.browser.source import RawPage
from rnow.browser.text.markdown import shows_at_least

_TITLE = re.compile(r"<title[^>]*>([^<]{0,200})", re.IGNORECASE)
# Whole titles: those of articles begin with the same words.
_TITLES = (
    "just a moment",  # Cloudflare, waiting
    "attention required! | cloudflare",
    "access denied",  # Akamai
    "pardon our interruption",  # Imperva
    "fda apology",
    "abuse detection",
)
_ABUSE_PATH = "apology_objects/abuse-detection"  # where www.fda.gov sends programs
_MARKS = (
    _ABUSE_PATH,
    "request unsuccessful. incapsula incident id",
)
_MAX_BLOCK_CHARS = 2_000  # that a reader sees: an article of such a name has more
_MAX_SHORT_CHARS = 20_000  # a long page may well write about such things


def is_block_page(page: RawPage) -> bool:
    """Return whether this answer is a site's refusal to be read by programs."""
    if _ABUSE_PATH in page.url.path:
        return True
    if not page.is_html:
        return False
    start = page.text()[:_MAX_SHORT_CHARS].lower()
    title = _TITLE.search(start)
    if title is not None and title[1].strip().rstrip(".\u2026 ") in _TITLES:
        return not shows_at_least(_MAX_BLOCK_CHARS, page.text())
    return len(page.body) < _MAX_SHORT_CHARS and any(mark in start for mark in _MARKS)
