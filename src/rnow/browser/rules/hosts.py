"""Which hosts the settings let a browser read: those on the list, and local sites."""

from typing import NewType

from yarl import URL

from rnow.browser.errors import BrowseError
from rnow.browser.rules.guard import check_literal, covers, normalize_host
from rnow.browser.settings import BrowserSettings

AllowedUrl = NewType("AllowedUrl", URL)  # whose host may be read: HostRules says so


class HostRules:
    """The list of one browser, in the guard's spelling of hosts. Takes checked URLs."""

    def __init__(self, settings: BrowserSettings) -> None:
        self._allow_hosts = tuple(map(normalize_host, settings.allow_hosts))
        self._local_ports = {
            normalize_host(host): port for host, port in settings.local_sites.items()
        }

    def local_port(self, host: str | None) -> int | None:
        """Return the port on 127.0.0.1 where this host is served; None for all others."""
        return self._local_ports.get(host or "")

    def check(self, url: URL) -> AllowedUrl:
        """Return a URL whose host is local, or public and on the list; else raise BrowseError.

        Sources take no other URLs. What a model wrote is checked by the reader, and only there;
        where that leads, by whoever is led there.
        """
        host = url.raw_host or ""
        if self.local_port(host) is None:
            check_literal(host)
            if not any(covers(entry, host) for entry in self._allow_hosts):
                sentence = "this host is not on the list of sites that may be read."
                raise BrowseError("host_not_allowed", sentence)
        return AllowedUrl(url)
