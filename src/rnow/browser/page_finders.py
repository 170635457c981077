"""Pages that a text means without writing their URLs: what `rnow corpus build` fetches besides.

A prompt may name a record by its number alone; at which address that is read, whoever knows the
site can tell, and says so in tools.py with `page_finder`. As all of tools.py it is run in a tool
worker, never by the command itself.
"""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType
from typing import TypeVar

from yarl import URL

from rnow.browser.errors import BrowseError
from rnow.browser.settings import BrowserSettings
from rnow.errors import ToolDefinitionError

Find = TypeVar("Find", bound=Callable[[str], Iterable[str | URL]])

_FINDERS: list[FunctionType] = []  # in the order of their registration


def page_finder(find: Find) -> Find:
    r"""Let `rnow corpus build` fetch the pages that this function names for a text.

        @browser.page_finder
        def trials(text: str) -> list[str]:
            return [f"https://registry.test/trial/{n}" for n in re.findall(r"T-(\d+)", text)]

    It gets each text of prompts and metadata, system messages apart; the URLs that a text itself
    writes are found without it. `browser.allow_hosts` holds for what it names.
    """
    if not inspect.isfunction(find) or inspect.iscoroutinefunction(find):
        raise TypeError("@page_finder takes a plain function: a text in, a list of URLs out")
    _FINDERS.append(find)
    return find


def find_pages(text: str) -> list[str]:
    """Return the URLs that all finders name for a text, as the guard writes them.

    Raises ToolDefinitionError for a finder that fails or names what is no URL: a page that is
    silently not fetched is missed when there is no network any more.
    """
    from rnow.browser.rules.guard import check_url  # brings aiohttp

    named: list[str] = []
    for find in _FINDERS:
        try:
            found = find(text)
            for url in [found] if isinstance(found, str) else found:
                named.append(str(check_url(str(url), ports=BrowserSettings().ports)))
        except Exception as error:  # the project's own code
            said = error.sentence.rstrip(".") if isinstance(error, BrowseError) else error
            code = find.__code__
            raise ToolDefinitionError(
                f"{Path(code.co_filename).name}:{code.co_firstlineno}: page finder "
                f"'{find.__name__}' failed: {type(error).__name__}: {said}; mend it, or remove it"
            ) from error
    return named
