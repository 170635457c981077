"""What a site's refusal is, in the words that the model gets."""

from rnow.browser.errors import BrowseError
from rnow.browser.rules.blocked import is_block_page
from rnow.browser.source import RawPage

REDIRECTS = (301, 302, 303, 307, 308)
_LASTING = (400, 404, 410)  # a site would say so of the same URL again


def blocked_by_site() -> BrowseError:
    return BrowseError("blocked_by_site", "the site does not let programs read this page.")


def too_large() -> BrowseError:
    """Return the error for a page in Chromium; plain HTTP knows which limit it was."""
    return BrowseError("too_large", "this page and what it loads are too large.")


def no_text() -> BrowseError:
    sentence = "this is not a page of text."
    return BrowseError("unsupported_type", sentence, is_lasting=True)


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
