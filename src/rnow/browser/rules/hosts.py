"""Which hosts the settings let a browser read: those on the list, and local sites."""

from yarl import URL

from rnow.browser.rules.guard import check_host, normalize_host
from rnow.browser.settings import BrowserSettings


class HostRules:
    """The list of one browser, in the guard's spelling of hosts. Takes checked URLs."""

    def __init__(self, settings: BrowserSettings) -> None:
        self._allow_hosts = tuple(map(normalize_host, settings.allow_hosts))
        self._local_ports = {
            normalize_host(host): port for host, port in settings.local_sites.items()
        }

    def local_port(self, url: URL) -> int | None:
        """Return the port on 127.0.0.1 where this URL's host is served; None for all others."""
        return self._local_ports.get(url.raw_host or "")

    def check(self, url: URL) -> None:
        """Raise BrowseError unless this URL's host is local, or public and on the list."""
        if self.local_port(url) is None:
            check_host(url.raw_host or "", allow_hosts=self._allow_hosts)
