"""Which URLs may be asked for, and which addresses dialled.

Three lines of defence:

    check_url          the text of a URL: scheme, port, host; also of every redirect
    GuardedResolver    the addresses of a name: refused if any of them is not public
    guarded_socket     the address of a connect, whatever led to it: odd spellings, a name whose
                       answer changed, a library's own idea of a host

Names are resolved once for each connection, and the very addresses that were checked are dialled.
Local sites (pages that rnow serves itself) are no hole in this: their address and port come from
the settings, never from a URL, and over a connector of their own.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Collection
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from rnow.browser.errors import BrowseError

MayDial = Callable[[str, int], bool]  # (address, port): may a connection be made?
AddressInfo = tuple[Any, Any, int, str, tuple[Any, ...]]  # as getaddrinfo gives it

_MAX_URL_CHARS = 2_048
_URL_START = re.compile(r"https?://[^/]", re.IGNORECASE)
_NAME = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*"
)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Not public, whatever this Python's ipaddress thinks of them (its lists changed between releases).
_NOT_PUBLIC_4 = [
    ipaddress.IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        "168.63.129.16/32",  # Azure's host: a public number that answers inside every machine
    )
]
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo (an IPv4 address inside), benchmarking, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",
    )
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # how IPv6-only networks reach all of IPv4


class BlockedAddressError(OSError):
    """A connection to an address that is not on the public internet was refused."""


def is_public(address: str) -> bool:
    """Return whether this address, in its canonical spelling, is on the public internet."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:
            return False
        if parsed in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
        inside = parsed in _PUBLIC_6 and not any(parsed in network for network in _NOT_PUBLIC_6)
        return inside and parsed.is_global
    return parsed.is_global and not any(parsed in network for network in _NOT_PUBLIC_4)


def check_url(text: str, *, ports: Collection[int]) -> URL:
    """Return a model's or a site's URL normalized and without fragment, or raise BrowseError.

    Says nothing about whether its host is allowed.
    """
    text = text.strip()
    if len(text) > _MAX_URL_CHARS:
        raise BrowseError("bad_url", f"a URL may have {_MAX_URL_CHARS} characters.")
    if not _URL_START.match(text):
        raise BrowseError("bad_url", "a URL must start with http:// or https:// and name a host.")
    if re.search(r"[\x00-\x1f\x7f\\]", text):
        raise BrowseError("bad_url", "a URL holds no control characters and no backslashes.")
    try:
        url = URL(text).with_fragment(None)
        host, port = url.raw_host, url.port
    except ValueError:
        raise BrowseError("bad_url", "this is not a well-formed URL.") from None
    if "@" in url.raw_authority:
        raise BrowseError("bad_url", "a URL must not hold a user name or password.")
    if port is None or port not in ports:
        raise BrowseError("bad_url", "only the usual ports of http and https can be read.")
    if not host or not _is_well_formed(host.rstrip(".")):
        raise BrowseError("bad_url", "this is not a well-formed host name.")
    # One spelling for one page: a path, no dot after the host, no port that goes without saying.
    name = f"[{host}]" if ":" in host else host.rstrip(".")
    at_port = "" if url.is_default_port() else f":{port}"
    return URL(f"{url.scheme}://{name}{at_port}{url.raw_path_qs}", encoded=True)


def normalize_host(host: str) -> str:
    """Return a host of the settings as check_url writes it: lower case, IDNA; `*` and `*.` stay."""
    if host == "*":
        return host
    start, name = ("*.", host[2:]) if host.startswith("*.") else ("", host)
    return start + (URL(f"http://{name.rstrip('.')}").raw_host or "")


def check_literal(host: str) -> None:
    """Raise BrowseError where this host of a checked URL is an address, and not a public one."""
    if _is_literal(host) and not is_public(host):
        raise BrowseError("blocked_address", "this address is not on the public internet.")


def covers(entry: str, host: str) -> bool:
    """Return whether a normalized entry of the settings (a host, `*.` and a host, `*`) is this."""
    if entry == "*":
        return True
    if entry.startswith("*."):
        return host.endswith(entry[1:])
    return host == entry


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_well_formed(host: str) -> bool:
    """Return whether this is a name or an address in its canonical spelling.

    "0x7f.1", "2130706434" and "127.1" are neither, but libraries take them for addresses.
    """
    if _is_literal(host):
        return "%" not in host
    return bool(_NAME.fullmatch(host)) and not _NUMBER.fullmatch(host.rpartition(".")[2])


class GuardedResolver(AbstractResolver):
    """Resolves through another resolver; refuses a name if any of its addresses may not be dialled.

    One is enough: a name that answers with a public and an inner address is an attack.
    """

    def __init__(self, inner: AbstractResolver, *, may_dial: MayDial) -> None:
        self._inner = inner
        self._may_dial = may_dial

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        answers = await self._inner.resolve(host, port, family)
        if not all(self._may_dial(answer["host"], answer["port"]) for answer in answers):
            raise BlockedAddressError("a name resolves to an address that may not be dialled")
        return answers

    async def close(self) -> None:
        await self._inner.close()


def guarded_socket(may_dial: MayDial) -> Callable[[AddressInfo], socket.socket]:
    """Return a socket factory for aiohttp's TCPConnector, which asks it before every connect."""

    def make(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        if not may_dial(address[0], address[1]):
            raise BlockedAddressError("this address may not be dialled")
        return socket.socket(family=family, type=kind, proto=protocol)

    return make
