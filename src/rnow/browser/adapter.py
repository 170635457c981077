"""The record of an adapter. See the package for what one is."""

from collections.abc import Callable
from dataclasses import dataclass

from yarl import URL

from rnow.browser.source import RawPage


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Serves pages of one site from its data."""

    name: str  # RawPage.source of what it got
    locate: Callable[[URL], URL | None]  # a page's URL -> its data's; None: not one of its pages
    render: Callable[[RawPage], str]  # data under the page's URL -> markdown
    is_for_all: bool = False  # one file of data serves all pages: kept in memory for a day
