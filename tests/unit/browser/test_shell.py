import pytest

from rnow.browser.shell import network_notices

PROXY = (
    "of this shell: not used for pages, whose addresses are checked where they are dialled; a tool "
    "of your own sees it if tools.env names it"
)
USED = "of this shell: used for pages by plain HTTP; Chromium has its own certificates"
UNUSED = "of this shell: not used for pages; name the file in SSL_CERT_FILE, which is"


@pytest.mark.parametrize(
    ("environ", "notices"),
    [
        ({"PATH": "/bin", "HTTP_PROXY": "", "NO_PROXY": "*"}, ()),
        ({"https_proxy": "http://p:1", "ALL_PROXY": "x"}, (f"ALL_PROXY, https_proxy {PROXY}",)),
        ({"SSL_CERT_FILE": "/ca", "CURL_CA_BUNDLE": "/ca"}, (f"SSL_CERT_FILE {USED}",)),
        ({"REQUESTS_CA_BUNDLE": "/ca"}, (f"REQUESTS_CA_BUNDLE {UNUSED}",)),
        (
            {"HTTP_PROXY": "http://p:1", "SSL_CERT_DIR": "/ca"},
            (f"HTTP_PROXY {PROXY}", f"SSL_CERT_DIR {USED}"),
        ),
    ],
)
def test_what_the_shell_says_of_the_network_is_told(
    environ: dict[str, str], notices: tuple[str, ...]
) -> None:
    assert network_notices(environ) == notices
