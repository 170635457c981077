"""What an answer is, found out as browsers do: its kind, its encoding, where it sends its reader.

Sites name kinds and encodings that are wrong, narrower than what they send, or missing. Browsers
agree on what is believed, in the standards of WHATWG (MIME Sniffing, Encoding, HTML):

    encoding    byte order mark > header > <meta> > <?xml encoding=?> > what the bytes look like
    a label     means its superset: iso-8859-1 is windows-1252, gb2312 is gb18030
    kind        the header's, unless it says nothing: then that of the first bytes

Not taken over: encodings are not guessed from the language of a text. Where nothing is declared it
is UTF-8, or windows-1252 where that is plainly wrong.
"""

import codecs
import re
from typing import Any
from urllib.parse import urljoin

import webencodings  # type: ignore[import-untyped]  # it ships no types

_READABLE = re.compile(
    r"text/.*|application/(?:pdf|json.*|x?html\+xml|xml.*|(?:x-)?javascript|(?:x-)?ndjson|(?:x-)?yaml)"
    r"|.*\+(?:json|xml)"
)
# Kinds that name none, and those that only mean "to be kept": a PDF is often sent so.
_UNNAMED = ("", "*/*", "unknown/unknown", "application/unknown")
_TO_BE_KEPT = re.compile(
    r"(?:application|binary)/(?:octet-stream|x-pdf|x-download|download|force-download)"
)
_HTML = ("text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml")
_HTML_START = re.compile(
    rb"\s*(?:<!--.*?-->\s*)*+"
    rb"<(?:!doctype html|html|head|body|script|title|meta|style|table|div|h1|p|a|b|br)[\s>]",
    re.IGNORECASE | re.DOTALL,
)
_XHTML_START = re.compile(
    rb"\s*(?:<\?xml.{0,200}?\?>\s*)?(?:<!--.*?-->\s*)*+(?:<!doctype\s+html|<html[\s>])", re.DOTALL
)
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_LOOKED_AT_BYTES = 1_445  # as much as a browser looks at
_HEAD_BYTES = 4_096

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# The standard decodes these two by more than Python does under their names.
_SUPERSETS = {"gbk": "gb18030", "euc-jp": "euc_jis_2004"}
_XML_ENCODING = re.compile(
    r"""\s*<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([A-Za-z0-9._:-]+)""", re.ASCII
)
_CHARSET = re.compile(r"""charset\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s;"']+))""", re.IGNORECASE)
_REFRESH = re.compile(
    r"""\s*(\d*)[\d.]*(?:[;,\s]\s*[;,]?\s*(?:url\s*=\s*)?(?:"([^"]*)|'([^']*)|(.*)))?""",
    re.IGNORECASE | re.DOTALL,
)
_HAS_REFRESH = re.compile(r"http-equiv\s*=\s*[\"']?\s*refresh", re.IGNORECASE)
_MAX_REFRESH_S = 10  # a page that stays longer is there to be read


def named_kind(header: str) -> str:
    """Return the media type of a Content-Type header, in lower case; "" where it has none."""
    found = re.match(r"\s*([^\s;,/]+/[^\s;,]+)", header)
    return found[1].lower() if found is not None else ""


def may_be_text(kind: str) -> bool:
    """Say whether an answer of this kind is worth reading: a kind of text or PDF, or no kind."""
    return bool(_READABLE.fullmatch(kind) or kind in _UNNAMED or _TO_BE_KEPT.fullmatch(kind))


def is_html(kind: str) -> bool:
    return kind in _HTML


def kind_of(kind: str, body: bytes) -> str | None:
    """Return what an answer that is called `kind` is; None for what is no text and no PDF."""
    if body.startswith(b"%PDF-"):
        return "application/pdf"
    if kind in _UNNAMED and _HTML_START.match(body[:_LOOKED_AT_BYTES]):
        return "text/html"
    if kind in ("text/xml", "application/xml") and _XHTML_START.match(body[:_LOOKED_AT_BYTES]):
        return "application/xhtml+xml"
    if kind == "application/pdf" or is_html(kind):
        return kind
    if _TO_BE_KEPT.fullmatch(kind) or looks_binary(body):
        return None
    return "text/plain" if kind in _UNNAMED else kind


def looks_binary(body: bytes) -> bool:
    """Say whether the first bytes are no text in any encoding but UTF-16 that says so."""
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    return _BINARY.search(body[:_LOOKED_AT_BYTES]) is not None


def text_of(body: bytes, *, kind: str, charset: str | None) -> str:
    """Return an answer's text; `charset` is the header's. What cannot be decoded is U+FFFD."""
    for mark, name in _BYTE_ORDER_MARKS:
        if body.startswith(mark):
            return body[len(mark) :].decode(name, errors="replace")
    encoding = webencodings.lookup(charset or "") or _declared(body, kind)
    if encoding is None:
        return _undeclared(body, may_be_other=not kind.endswith(("json", "xml")))
    wider = _SUPERSETS.get(encoding.name)
    codec = encoding.codec_info if wider is None else codecs.lookup(wider)
    return str(codec.decode(body, "replace")[0])


def sent_on(html: str, header: str | None, *, url: str) -> str | None:
    """Return where a page sends its reader by itself, soon; `header` is its Refresh header.

    None for a page that only loads itself again, and for what browsers do not follow.
    """
    contents, base = ([] if header is None else [header]), url
    if _HAS_REFRESH.search(html):
        page = _parsed(html.replace("\0", "").encode(errors="replace"), "utf-8")
        links = page.xpath("//base/@href")
        base = urljoin(url, links[0]) if links else url
        contents += [
            meta.get("content", "")
            for meta in page.iter("meta")
            if meta.get("http-equiv", "").strip().lower() == "refresh"
            and next(meta.iterancestors("noscript", "template"), None) is None
        ]
    for content in contents:
        found = _REFRESH.match(content)
        assert found is not None  # every part of it may be empty
        target = (found[2] or found[3] or found[4] or "").strip()
        joined = urljoin(base, target).partition("#")[0]
        if target and int(found[1] or 0) <= _MAX_REFRESH_S and joined != url.partition("#")[0]:
            return joined if joined.startswith(("http://", "https://")) else None
    return None


def _declared(body: bytes, kind: str) -> "webencodings.Encoding | None":
    """Return the encoding that a document names itself: in a <meta>, or in its XML declaration."""
    head = body[:_HEAD_BYTES]
    if head.startswith((b"<\0?\0x\0", b"\0<\0?\0x")):
        return webencodings.lookup("utf-16be" if head[0] == 0 else "utf-16le")
    found = None
    if is_html(kind) and re.search(rb"<meta", head, re.IGNORECASE):
        labels = map(_meta_label, _parsed(head, "iso-8859-1").iter("meta"))
        found = next(filter(None, map(webencodings.lookup, filter(None, labels))), None)
    if found is None and kind.endswith(("xml", "html")):
        declaration = _XML_ENCODING.match(head.decode("iso-8859-1"))
        found = webencodings.lookup(declaration[1]) if declaration is not None else None
    # What could be read so far is no UTF-16, whatever it says.
    if found is not None and found.name.startswith("utf-16"):
        return webencodings.lookup("utf-8")
    return found


def _meta_label(meta: Any) -> str | None:
    if meta.get("charset"):
        return str(meta.get("charset"))
    if meta.get("http-equiv", "").strip().lower() != "content-type":
        return None
    found = _CHARSET.search(meta.get("content", ""))
    return None if found is None else found[1] or found[2] or found[3]


def _parsed(source: bytes, encoding: str) -> Any:
    """Return the document, for its elements in the head; `source` may be cut anywhere."""
    import lxml.etree  # type: ignore[import-untyped]  # lxml ships no types
    import lxml.html  # type: ignore[import-untyped]

    parser = lxml.html.HTMLParser(encoding=encoding)
    try:
        return lxml.html.document_fromstring(source, parser=parser)
    except lxml.etree.ParserError:  # lxml's word for a document without any element
        return lxml.html.Element("html")


def _undeclared(body: bytes, *, may_be_other: bool) -> str:
    """Decode as UTF-8; as windows-1252 where more of it is broken than whole in UTF-8."""
    text = body.decode(errors="replace")
    num_broken = text.count("\ufffd")
    if may_be_other and num_broken:
        num_whole = sum(character > "\x7f" for character in text) - num_broken
        if num_broken > num_whole:
            return body.decode("cp1252", errors="replace")
    return text
