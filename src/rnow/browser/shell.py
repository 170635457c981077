"""What of the shell's network settings holds for pages, said once, since programs differ in it.

Proxies do not: the address guard checks what it dials itself, and a proxy would dial for it. A file
of certificates does where OpenSSL is told of it.
"""

from collections.abc import Mapping

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_OPENSSL = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_OTHERS = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # of other programs, for the same end


def network_notices(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return a sentence for each kind of setting that is there."""
    set_ = {name for name, value in environ.items() if value}
    proxies = sorted(name for name in set_ if name.lower() in _PROXIES)
    used = sorted(set_.intersection(_OPENSSL))
    unused = sorted(set_.intersection(_OTHERS))
    notices = []
    if proxies:
        notices.append(
            f"{', '.join(proxies)} of this shell: not used for pages, whose addresses are checked "
            "where they are dialled; a tool of your own sees it if tools.env names it"
        )
    if used:
        notices.append(
            f"{', '.join(used)} of this shell: used for pages by plain HTTP; Chromium has its own "
            "certificates"
        )
    elif unused:
        notices.append(
            f"{', '.join(unused)} of this shell: not used for pages; name the file in "
            "SSL_CERT_FILE, which is"
        )
    return tuple(notices)
