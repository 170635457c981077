"""What an answer is to a browser: its encoding, its kind, where it sends its reader."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnow.browser.kind import kind_of, may_be_text, named_kind, sent_on, text_of

URL = "https://a.test/old"
HTML = "text/html"
UMLAUT = "Größe – €5"


def decoded(body: bytes, *, kind: str = HTML, charset: str | None = None) -> str:
    return text_of(body, kind=kind, charset=charset)


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [
        ("ISO-8859-1", "cp1252", "Korela’s price: €100 – “net”"),
        ("latin1", "cp1252", "€"),
        ("us-ascii", "cp1252", "’"),
        ("iso-8859-9", "cp1254", "€ ğ"),
        ("tis-620", "cp874", "€ ก"),
        ("gb2312", "gbk", "朱镕基 公司"),
        ("gbk", "gb18030", "㐀"),
        ("Shift_JIS", "cp932", "①株式会社髙島屋"),
        ("x-sjis", "cp932", "①"),
        ("euc-jp", "euc_jis_2004", "①株式会社"),
        ("iso-2022-jp", "iso2022_jp", "株式会社"),
        ("euc-kr", "cp949", "똠방각하"),
        ("ks_c_5601-1987", "cp949", "한국 회사"),
        ("big5", "big5hkscs", "㗎"),
        ("koi8-u", "koi8-u", "Київ"),
        ("macintosh", "mac-roman", "Größe"),
        ("utf8", "utf-8", UMLAUT),
        ("unicode-1-1-utf-8", "utf-8", UMLAUT),
        ("utf-16", "utf-16-le", UMLAUT),
        ("utf-16be", "utf-16-be", UMLAUT),
    ],
)
def test_a_label_means_what_browsers_read_under_it(label: str, codec: str, text: str) -> None:
    assert decoded(f"<p>{text}".encode(codec), charset=label) == f"<p>{text}"
    if not codec.startswith("utf-16"):
        head = f"<meta charset='{label}'><p>"
        assert decoded(f"{head}{text}".encode(codec)) == f"{head}{text}"


@pytest.mark.parametrize(
    ("body", "kind", "charset", "text"),
    [
        # A byte order mark, then the header, then <meta>, then the XML declaration.
        (b"\xef\xbb\xbf<meta charset=gbk>\xc3\xbc", HTML, "gbk", "<meta charset=gbk>ü"),
        ("ü".encode("utf-16"), HTML, "utf-8", "ü"),
        (b"<meta charset=gbk>\xc3\xbc", HTML, "utf-8", "<meta charset=gbk>ü"),
        (b"<?xml version='1.0' encoding='gbk'?><meta charset=utf-8>\xc3\xbc", HTML, None, "ü"),
        (b"<?xml version='1.0' encoding='latin1'?>\xfc", HTML, None, "ü"),
        (b'<?xml version="1.0" encoding="ISO-8859-1"?><a>\xfc', "text/xml", None, "<a>ü"),
        (b"<?xml version='1.0' encoding='latin1'?><a>\xfc", "application/rss+xml", None, "<a>ü"),
        # What is no label is passed over.
        (b"<meta charset=latin1>\xfc", HTML, "none", "ü"),
        (b"<meta charset=zlib><meta charset=latin1>\xfc", HTML, "idna", "ü"),
        # What could be read up to here is no UTF-16.
        ("<meta charset=utf-16><p>Größe".encode(), HTML, None, "Größe"),
        ("<?xml version='1.0' encoding='utf-16'?>ü".encode(), "text/xml", None, "ü"),
        ("<?xml version='1.0'?>ü".encode("utf-16-le"), "text/xml", None, "ü"),
        ("<?xml version='1.0'?>ü".encode("utf-16-be"), "text/xml", None, "ü"),
        # A charset is declared by the element that declares it, and by no other.
        (
            b"<meta http-equiv=Content-Type content='text/html; charset=\"latin1\"'>\xfc",
            *(HTML, None, "ü"),
        ),
        ("<meta name=description content='charset=gbk'>ü".encode(), HTML, None, "ü"),
        ("<!-- <meta charset=gbk> -->ü".encode(), HTML, None, "ü"),
        ("<script>'<meta charset=gbk>'</script>ü".encode(), HTML, None, "ü"),
        ("<meta charset=gbk>ü".encode(), "text/plain", None, "ü"),
        # Nothing is declared: UTF-8, unless most of it is none.
        ("Zürich".encode("latin-1"), HTML, None, "Zürich"),
        ("Zürich ü ä".encode() + b"\xff", HTML, None, "Zürich ü ä\ufffd"),
        ("Zürich".encode("latin-1"), "application/json", None, "Z\ufffdrich"),
        (b"", HTML, None, ""),
    ],
)
def test_of_several_encodings_the_first_in_the_standards_order_holds(
    body: bytes, kind: str, charset: str | None, text: str
) -> None:
    assert decoded(body, kind=kind, charset=charset).endswith(text)


@given(
    st.binary(max_size=300),
    st.sampled_from([HTML, "text/xml", "text/plain", "application/json"]),
    st.sampled_from([None, "", "utf-16", "gbk", "euc-jp", "iso-2022-kr", "x-user-defined", "x"]),
)
def test_all_bytes_are_text_in_every_encoding(body: bytes, kind: str, charset: str | None) -> None:
    assert isinstance(decoded(b"<meta " + body, kind=kind, charset=charset), str)
    kind_of(kind, body)


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("text/html; charset=utf-8", "text/html"),
        ("TEXT/HTML", "text/html"),
        ("text/html, text/html; charset=gbk", "text/html"),
        ("text/html charset=utf-8", "text/html"),
        (" text/html;; charset=x", "text/html"),
        ("html", ""),
        ("; charset=utf-8", ""),
        ("", ""),
    ],
)
def test_a_headers_kind_is_read_though_it_is_written_carelessly(header: str, kind: str) -> None:
    assert named_kind(header) == kind


@pytest.mark.parametrize(
    ("named", "body", "kind"),
    [
        ("", b"\n<!-- x --> <!DOCTYPE html><p>x", "text/html"),
        ("*/*", b"<P>x", "text/html"),
        ("unknown/unknown", b"a < b", "text/plain"),
        ("", b"", "text/plain"),
        ("", b"PK\x03\x04", None),
        ("application/octet-stream", b"%PDF-1.7\n", "application/pdf"),
        ("binary/octet-stream", b"<html>", None),  # a browser would save it
        ("application/x-pdf", b"%PDF-1.7", "application/pdf"),
        ("text/html", b"%PDF-1.4", "application/pdf"),
        ("application/xhtml+xml", b"<html>", "application/xhtml+xml"),
        ("text/xml", b"<?xml version='1.0'?>\n<html lang='en'>", "application/xhtml+xml"),
        ("application/xml", b"<feed><html>", "application/xml"),
        ("text/plain", b"a\x00\x01", None),
        ("text/plain", "a".encode("utf-16"), "text/plain"),
        ("text/csv", b"a,b\n", "text/csv"),
        ("text/html", b"<p>a\x00", "text/html"),
    ],
)
def test_the_bytes_say_what_the_header_does_not(named: str, body: bytes, kind: str | None) -> None:
    assert may_be_text(named)
    assert kind_of(named, body) == kind


def test_what_is_neither_text_nor_a_pdf_is_not_asked_for() -> None:
    for kind in ("application/zip", "image/png", "video/mp4", "font/woff2", "application/wasm"):
        assert not may_be_text(kind)
    for kind in ("application/ld+json", "application/rss+xml", "application/javascript"):
        assert may_be_text(kind)


@pytest.mark.parametrize(
    ("content", "target"),
    [
        ("0;url=/new", "https://a.test/new"),
        ("0; URL = '/new'", "https://a.test/new"),
        ('0;url="new?a=1;b" x', "https://a.test/new?a=1;b"),
        ("5,url=https://b.test/x#part", "https://b.test/x"),
        ("1.5 /new", "https://a.test/new"),
        ("  10;  /new  ", "https://a.test/new"),
        ("11;url=/new", None),  # there to be read first
        ("3", None),
        ("3;url=", None),
        ("3;url=/old", None),
        ("3;url=#part", None),
        ("0;url=javascript:alert(1)", None),
        ("0;url=data:text/html,x", None),
        ("0;url=file:///etc/passwd", None),
        ("soon", None),
    ],
)
def test_a_refresh_that_comes_soon_leads_elsewhere(content: str, target: str | None) -> None:
    quoted = content.replace('"', "&quot;")
    html = f'<head><META content="{quoted}" HTTP-EQUIV = Refresh></head>'
    assert sent_on(html, None, url=URL) == target
    assert sent_on("<p>x", content, url=URL) == target


@pytest.mark.parametrize(
    "html",
    [
        "<noscript><meta http-equiv=refresh content='0;url=/new'></noscript>",
        "<!-- <meta http-equiv=refresh content='0;url=/new'> -->",
        "<script>'<meta http-equiv=refresh content=\"0;url=/new\">'</script>",
        "<template><meta http-equiv=refresh content='0;url=/new'></template>",
        "<meta http-equiv=refresh>",
        "",
    ],
)
def test_what_a_browser_takes_for_no_refresh_is_none(html: str) -> None:
    assert sent_on(html, None, url=URL) is None


def test_a_refresh_is_joined_to_the_pages_base() -> None:
    html = "<base href='/dir/'><meta http-equiv=refresh content='0;url=new'>"
    assert sent_on(html, None, url=URL) == "https://a.test/dir/new"
