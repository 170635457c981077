"""What rnow.browser may fetch, and how much of it.

Imports nothing heavy: the controller makes this record from config.yml.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rnow import __version__

StoreMode = Literal["live", "record", "replay", "replay_then_live"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSettings:
    """The rules of one tool worker's browser; nothing is allowed unless it is named.

    BrowserSettings(allow_hosts=("site.test", "*.site.test"), contact="me@example.org",
                    local_sites={"clinic.test": 40001})

    A host in `allow_hosts` is that host alone; `*.site.test` is every host below site.test, not
    site.test itself; `*` is every public host.
    """

    allow_hosts: tuple[str, ...] = ()
    contact: str | None = None  # mail or web address in the user agent; without: local sites only
    num_workers: int = 1  # that share a site's patience: each asks so many times less often
    local_sites: Mapping[str, int] = field(default_factory=dict)  # host -> port on 127.0.0.1
    executable: str | None = None  # Chromium's program; without: every page by plain HTTP
    render_hosts: tuple[str, ...] = ()  # read by Chromium at once; in the form of `allow_hosts`
    store: str | None = None  # folder of the page store; None: nothing is kept on disk
    store_mode: StoreMode = "live"
    ttl_s: float = 0.0  # how long live serves a page from the store
    source: Literal["auto", "http", "browser"] = "auto"  # one alone: for looking at a page

    connect_timeout_s: float = 10.0
    fetch_timeout_s: float = 30.0  # one page with all its redirects, waiting for a slot apart
    convert_timeout_s: float = 20.0  # HTML to text; the first one also loads crawl4ai
    max_wait_s: float = 20.0  # for a slot; beyond it the model hears that the site is busy
    tab_timeout_s: float = 30.0  # waiting for a tab of Chromium
    render_timeout_s: float = 20.0  # one page in it
    settle_timeout_s: float = 3.0  # of that, for scripts to finish what they load
    num_tabs: int = 8  # pages in Chromium at the same time; two a core keep it busy
    min_visible_chars: int = 200  # a page with fewer may be one that its scripts fill
    max_redirects: int = 5
    max_body_bytes: int = 5_000_000  # after decompression
    max_wire_bytes: int = 20_000_000  # of one page in Chromium with all that it loads
    max_cached_bytes: int = 64_000_000  # of page text kept in memory
    ports: tuple[int, ...] = (80, 443)  # that a URL may name

    def __post_init__(self) -> None:
        # The characters of "*.site.test" are entries, and the first of them allows every host.
        for hosts in (self.allow_hosts, self.render_hosts):
            if isinstance(hosts, str):
                raise TypeError(f"hosts are {hosts!r}, one text; give a tuple: ({hosts!r},)")

    @property
    def user_agent(self) -> str:
        """What sites are told of who reads them; the same for every source."""
        contact = "" if self.contact is None else f" (+{self.contact})"
        return f"rnow/{__version__}{contact}"
