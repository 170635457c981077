"""Pages that their sites give away as data: fetched as that, shown as a reader would see them.

A page may be an application that holds no text before it runs, or turn programs away, while its
site has the same content as data, there for programs. A project says so in its tools.py:

    def data_of(url: URL) -> str | None:
        return f"https://{url.host}/api{url.path}" if url.path.startswith("/trial/") else None

    @browser.adapter("registry.test", data=data_of)
    def registry(page: browser.RawPage) -> str:
        return "# " + json.loads(page.body)["title"]

What is stored is the data as it came, under the page's URL; the function below the decorator is
pure, so a page that is replayed is rendered anew. robots.txt is not asked for data, but the guard,
the pace and `browser.allow_hosts` hold: where the list does not name the host of the data, the page
itself is read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from yarl import URL

from rnow.browser.errors import BrowseError
from rnow.browser.source import RawPage

Render = Callable[[RawPage], str]


class AdapterError(Exception):
    """An adapter that raised, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """Serves pages of one site from its data."""

    name: str  # RawPage.source of what it got
    hosts: tuple[str, ...]
    data: Callable[[URL], URL | str | None]
    render: Render  # data under the page's URL -> markdown
    is_for_all: bool  # one file of data serves all pages: kept in memory for a day

    def locate(self, url: URL) -> URL | None:
        """Return where the data of a page are; None for what is not one of its pages."""
        if url.raw_host not in self.hosts:
            return None
        with self._named():
            place = self.data(url)
            return None if place is None else URL(place)

    def markdown_of(self, page: RawPage) -> str:
        with self._named():
            return self.render(page)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Raise AdapterError for what the project's own functions raise, but not for BrowseError.

        A model is told no more than that there is no page; the log has this name and the reason.
        """
        try:
            yield
        except BrowseError:
            raise
        except Exception as error:
            raise AdapterError(
                f"adapter '{self.name}' raised {type(error).__name__}: {error}"
            ) from error


ADAPTERS: dict[str, Adapter] = {}  # by name, in the order of their registration


def adapter(
    *hosts: str, data: Callable[[URL], URL | str | None], is_for_all: bool = False
) -> Callable[[Render], Render]:
    """Serve pages of `hosts` from data; the decorated function makes markdown of what came.

    `data` maps a page's URL to that of its data, or to None where it is not one of the pages;
    `is_for_all` keeps a file that serves many pages in memory for a day. The function's name is
    told in the page store, so it stays what it is.
    """
    if not hosts:
        raise ValueError('@adapter needs a host: @browser.adapter("registry.test", data=data_of)')
    if urls := [host for host in hosts if "/" in host]:
        raise ValueError(f"@adapter needs a host, and {urls[0]} is a URL: name its host alone")

    def register(render: Render) -> Render:
        name = render.__name__
        known = ADAPTERS.get(name)
        if name in _TAKEN or (known is not None and known.render is not render):
            raise ValueError(f"@adapter '{name}': the name is taken; give the function another")
        ADAPTERS[name] = Adapter(
            name=name, hosts=hosts, data=data, render=render, is_for_all=is_for_all
        )
        return render

    return register


def render(page: RawPage) -> str | None:
    """Return the markdown of an adapter's answer; None for what no adapter got."""
    found = ADAPTERS.get(page.source)
    return None if found is None else found.markdown_of(page)


_TAKEN = ("http", "browser")  # sources of pages that came as they are
