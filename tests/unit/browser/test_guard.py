import ipaddress
import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from rnow.browser.errors import BrowseError
from rnow.browser.rules.guard import (
    BlockedAddressError,
    GuardedResolver,
    check_url,
    guarded_socket,
    is_public,
)
from rnow.browser.rules.hosts import HostRules
from rnow.browser.settings import BrowserSettings

PORTS = (80, 443)
PUBLIC = [
    "8.8.8.8",
    "151.101.1.69",
    "2606:4700::6810:84e5",
    "2a00:1450:4001::1",
    "64:ff9b::808:808",
]
NOT_PUBLIC = [
    *("0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.0.0.2"),
    *("169.254.169.254", "172.16.0.1", "192.0.0.9", "192.0.0.192", "192.88.99.1", "192.168.1.1"),
    *("198.18.0.1", "203.0.113.5", "224.0.0.1", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *(
        "::",
        "::1",
        "::7f00:2",
        "::ffff:7f00:2",
        "::ffff:8.8.8.8",
        "fe80::1",
        "fe80::1%eth0",
        "2606:4700::1%1",
    ),
    *("fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "64:ff9b::7f00:2", "64:ff9b:1::808:808"),
    *("2001:0:53aa:64c:0:fbff:80ff:fffd", "2001:db8::1", "2002:7f00:2::", "3fff::1", "5f00::1"),
    *("", "localhost", "0x7f000002", "2130706434", "127.1"),
]
PRIVATE_4 = st.one_of(
    st.ip_addresses(v=4, network=network)
    for network in ("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "100.64.0.0/10")
)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_public_internet_may_be_dialled(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_no_other_address_may_be_dialled(address: str) -> None:
    assert not is_public(address)


@given(PRIVATE_4)
def test_an_inner_ipv4_address_is_refused_in_every_ipv6_wrapping(
    address: ipaddress.IPv4Address,
) -> None:
    number = int(address)
    wrappings = [
        number,  # compatible
        0xFFFF << 32 | number,  # mapped
        0x64FF9B << 96 | number,  # NAT64
        0x2002 << 112 | number << 80,  # 6to4
        0x20010000 << 96 | (number ^ 0xFFFFFFFF),  # Teredo
    ]
    for wrapped in (str(address), *(str(ipaddress.IPv6Address(number)) for number in wrappings)):
        assert not is_public(wrapped)


@given(st.ip_addresses())
def test_nothing_is_public_that_the_standard_library_calls_private(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if is_public(str(address)):
        assert address.is_global
        assert not any((address.is_multicast, address.is_loopback, address.is_link_local))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "view-source:file:///etc/passwd",
        "raw:<iframe src='http://127.0.0.2/'>",
        "data:text/html,x",
        "javascript:alert(1)",
        "chrome://version",
        "ftp://example.com/",
        "//example.com/",
        "example.com",
        "",
        "http:///etc/passwd",
        "http:/example.com",
    ],
)
def test_only_http_and_https_urls_with_a_host_are_read(url: str) -> None:
    assert refusal(url) == (
        "ERROR bad_url: a URL must start with http:// or https:// and name a host."
    )


@pytest.mark.parametrize(
    "host",
    [
        *("0x7f000002", "2130706434", "127.1", "0177.0.0.2", "1.0x7f", "%31", "a..b", "a b"),
        *("[::1", "[fe80::1%25eth0]", "a%2eb.com", "a.com%00.b.com", "-a.com", ".", "a" * 254),
    ],
)
def test_a_host_is_a_name_or_a_canonical_address(host: str) -> None:
    assert refusal(f"http://{host}/").startswith("ERROR bad_url: this is not a well-formed ")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://a.com:8080/", "only the usual ports of http and https can be read."),
        ("http://a.com:22/", "only the usual ports of http and https can be read."),
        ("http://user@a.com/", "a URL must not hold a user name or password."),
        ("http://a.com:80@127.0.0.2/", "a URL must not hold a user name or password."),
        ("http://a.com\\@b.com/", "a URL holds no control characters and no backslashes."),
        ("http://a.com/\r\nHost: b", "a URL holds no control characters and no backslashes."),
        ("http://a.com:99999/", "this is not a well-formed URL."),
        ("http://a.com/" + "x" * 2_048, "a URL may have 2048 characters."),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, sentence: str) -> None:
    assert refusal(url) == f"ERROR bad_url: {sentence}"


@pytest.mark.parametrize(
    ("url", "normalized"),
    [
        (" HTTPS://Example.COM.:443/a/../b?x=1#part ", "https://example.com/b?x=1"),
        ("http://a.com", "http://a.com/"),
        ("http://a.com:443/", "http://a.com:443/"),
        ("http://bücher.example/ä b", "http://xn--bcher-kva.example/%C3%A4%20b"),
        ("http://１２７.0.0.2/", "http://127.0.0.2/"),
        ("http://[::FFFF:7f00:2]/", "http://[::ffff:7f00:2]/"),
    ],
)
def test_one_page_has_one_spelling(url: str, normalized: str) -> None:
    assert str(check_url(url, ports=PORTS)) == normalized


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "::ffff:7f00:2", "169.254.169.254"])
def test_an_inner_address_is_refused_though_every_host_is_allowed(host: str) -> None:
    with pytest.raises(BrowseError) as refused:
        HostRules(BrowserSettings(allow_hosts=("*",))).check(url_of(host))
    assert refused.value.text == (
        "ERROR blocked_address: this address is not on the public internet."
    )


@pytest.mark.parametrize(
    ("entry", "host", "is_allowed"),
    [
        ("fda.gov", "fda.gov", True),
        ("FDA.gov.", "fda.gov", True),
        ("fda.gov", "www.fda.gov", False),
        ("*.fda.gov", "www.fda.gov", True),
        ("*.fda.gov", "a.b.fda.gov", True),
        ("*.fda.gov", "fda.gov", False),
        ("*.fda.gov", "evilfda.gov", False),
        ("fda.gov", "fda.gov.evil.com", False),
        ("bücher.example", "xn--bcher-kva.example", True),
        ("*", "anything.example", True),
    ],
)
def test_an_entry_is_one_host_unless_it_says_otherwise(
    entry: str, host: str, is_allowed: bool
) -> None:
    rules, url = HostRules(BrowserSettings(allow_hosts=(entry,))), url_of(host)
    if is_allowed:
        assert rules.check(url) is url
        return
    with pytest.raises(BrowseError) as refused:
        rules.check(url)
    assert refused.value.text == (
        "ERROR host_not_allowed: this host is not on the list of sites that may be read."
    )


@pytest.mark.parametrize("field", ["allow_hosts", "render_hosts"])
def test_one_text_is_no_list_of_hosts(field: str) -> None:
    with pytest.raises(TypeError) as refused:
        BrowserSettings(**{field: "*.fda.gov"})  # type: ignore[arg-type]
    assert str(refused.value) == "hosts are '*.fda.gov', one text; give a tuple: ('*.fda.gov',)"


@pytest.mark.parametrize(
    "answers", [["127.0.0.2"], ["8.8.8.8", "127.0.0.2"], ["2606:4700::1", "fe80::1%eth0"]]
)
async def test_a_name_with_one_inner_address_is_refused(answers: list[str]) -> None:
    resolver = GuardedResolver(FixedResolver(answers), may_dial=public_only)
    with pytest.raises(BlockedAddressError):
        await resolver.resolve("a.com", 80)


async def test_a_name_with_public_addresses_keeps_them() -> None:
    resolver = GuardedResolver(FixedResolver(["8.8.8.8", "1.1.1.1"]), may_dial=public_only)
    assert [answer["host"] for answer in await resolver.resolve("a.com", 80)] == [
        "8.8.8.8",
        "1.1.1.1",
    ]


def test_no_socket_is_made_for_an_inner_address() -> None:
    make = guarded_socket(public_only)
    with pytest.raises(BlockedAddressError):
        make((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.2", 80)))
    make((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 80))).close()


class FixedResolver(AbstractResolver):
    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=a, port=port, family=family, proto=0, flags=0)
            for a in self.addresses
        ]

    async def close(self) -> None:
        pass


def public_only(address: str, port: int) -> bool:
    return is_public(address)


def url_of(host: str) -> URL:
    return check_url(f"http://[{host}]/" if ":" in host else f"http://{host}/", ports=PORTS)


def refusal(url: str) -> str:
    with pytest.raises(BrowseError) as refused:
        check_url(url, ports=PORTS)
    return refused.value.text
