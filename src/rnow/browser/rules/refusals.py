"""Answers that are no page, in the words that the model gets.

A page that says "you are a program" is never content, and nothing is done to get around it.
"""

import re

from rnow.browser.errors import BrowseError
from rnow.browser.source import RawPage
from rnow.browser.text.markdown import shows_at_least

REDIRECTS = (301, 302, 303, 307, 308)
_TITLE = re.compile(r"<title[^>]*>([^<]{0,200})", re.IGNORECASE)
# Whole titles: those of articles begin with the same words.
_TITLES = (
    "just a moment",  # Cloudflare, waiting
    "attention required! | cloudflare",
    "access denied",  # Akamai
    "pardon our interruption",  # Imperva
    "abuse detection",
)
_APOLOGY = re.compile(r"[A-Z]{2,8} Apology")  # a site's, by its initials
_ABUSE_PATH = "apology_objects/abuse-detection"  # where such a site sends programs
_MARKS = (
    _ABUSE_PATH,
    "request unsuccessful. incapsula incident id",
)
_MAX_BLOCK_CHARS = 2_000  # that a reader sees: an article of such a name has more
_MAX_SHORT_CHARS = 20_000  # a long page may well write about such things
_LASTING = (400, 404, 410)  # a site would say so of the same URL again


def is_block_page(page: RawPage) -> bool:
    """Return whether this answer is a site's refusal to be read by programs."""
    if _ABUSE_PATH in page.url.path:
        return True
    if not page.is_html:
        return False
    start = page.text()[:_MAX_SHORT_CHARS]
    title = _TITLE.search(start)
    if title is not None and _is_of_block_page(title[1].strip().rstrip(".\u2026 ")):
        return not shows_at_least(_MAX_BLOCK_CHARS, page.text())
    if len(page.body) >= _MAX_SHORT_CHARS:
        return False
    lowered = start.lower()
    return any(mark in lowered for mark in _MARKS)


def _is_of_block_page(title: str) -> bool:
    return title.lower() in _TITLES or _APOLOGY.fullmatch(title) is not None


def blocked_by_site() -> BrowseError:
    return BrowseError("blocked_by_site", "the site does not let programs read this page.")


def too_large() -> BrowseError:
    """Return the error for a page in Chromium; plain HTTP knows which limit it was."""
    return BrowseError("too_large", "this page and what it loads are too large.")


def no_text() -> BrowseError:
    sentence = "this is not a page of text."
    return BrowseError("unsupported_type", sentence, is_lasting=True)


def too_many_redirects() -> BrowseError:
    return BrowseError("too_many_redirects", "the site sends the reader from page to page.")


def unreachable() -> BrowseError:
    return BrowseError("unreachable", "the connection to the site failed.")


def refusal_of_status(status: int, page: RawPage | None) -> BrowseError:
    """Return the error for a status that is not a success; `page` is what came with it, if read."""
    if status == 429:
        return BrowseError("rate_limited", "the site asks for fewer requests; try again later.")
    if status in (403, 503) and page is not None and is_block_page(page):
        return blocked_by_site()
    return status_error(status)


def status_error(status: int) -> BrowseError:
    sentence = f"the site answered with status {status}."
    return BrowseError(f"http_{status}", sentence, is_lasting=status in _LASTING)
