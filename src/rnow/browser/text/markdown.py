"""HTML -> the markdown that the model reads. crawl4ai converts; what it converts is decided here.

What a reader would not see is taken out first: scripts, styles, comments, forms, hidden elements,
navigation. Then links are made short, because a 100 KB page holds hundreds of them: `[text](/path)`
on the page's own host, the whole URL elsewhere, the bare text where there is nothing to follow.
Emphasis and images cost tokens and say little: left out. What <noscript> holds is there for readers
whose browser runs no scripts, as plain HTTP runs none.

Not done here: style sheets are not evaluated, so text that only they hide is seen. Importing this
module is cheap; crawl4ai (about a second) is loaded by the first conversion.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import quote, urldefrag, urljoin, urlsplit

from rnow.browser.text.crawl4ai_import import loading_crawl4ai
from rnow.browser.text.marks import write_marks

_MAX_LINK_CHARS = 200  # longer ones are sessions and trackers; the link's text stays

_DROPPED_TAGS = (
    *("script", "style", "template", "head", "link", "meta", "dialog", "annotation"),
    *("svg", "canvas", "iframe", "frame", "object", "video", "audio", "map", "annotation-xml"),
    *("input", "button", "select", "textarea", "datalist"),
)
_NAVIGATION = ("nav", "footer")
_NAVIGATION_ROLES = ("navigation", "contentinfo", "search")
_HIDDEN_STYLE = re.compile(
    r"(?:^|;)(?:display:none|visibility:(?:hidden|collapse)|opacity:0(?:\.0+)?|font-size:0[a-z%]*)"
    r"(?:!important)?(?:;|$)"
)
_TABLE_PARTS = ("tr", "td", "th", "thead", "tbody", "tfoot", "caption", "colgroup")
_BLOCKS = (
    *("p", "div", "br", "hr", "li", "ul", "ol", "dl", "dt", "dd", "pre", "blockquote"),
    *("h1", "h2", "h3", "h4", "h5", "h6"),
)
# Control characters, soft hyphen, zero-width, bidi, invisible operators and fillers, tags,
# variation selectors.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_SPACES = re.compile("[\t \xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LINE_BREAKS = re.compile("\r\n|[\r\u2028\u2029]")

# crawl4ai answers with these words where its own code raised; they must not pass for the page.
_FAILURES = ("Error converting HTML to markdown:", "Error in markdown generation:")


class UnreadablePageError(Exception):
    """The page's HTML cannot be turned into text. The message is for a log, not for the model."""


def html_to_markdown(html: str, *, url: str, has_run_scripts: bool = False) -> str:
    """Return what a reader would see of `html`, as markdown; "" for a page without text.

    `url` is where the page stands: links are joined to it. `has_run_scripts`: the HTML is what a
    browser made of the page.
    """
    dropped = ("noscript",) if has_run_scripts else ()
    without_navigation = _convert(html, url=url, dropped=(*dropped, *_NAVIGATION))
    # A page that is nothing but navigation (an index) is read whole.
    return without_navigation or _convert(html, url=url, dropped=dropped)


def shows_at_least(num_chars: int, html: str) -> bool:
    """Say whether a reader with scripts would see so many characters, spaces not counted.

    Reads no further than it must: a page is cleaned once, for its conversion.
    """
    import lxml.etree  # type: ignore[import-untyped]  # lxml ships no types

    body = _body_of(html)
    if body is None:
        return num_chars <= 0
    walk = lxml.etree.iterwalk(body, events=("start", "end"))
    for event, element in walk:
        if num_chars <= 0:
            break
        if event == "start" and _is_unseen(element, ("noscript", *_NAVIGATION)):
            walk.skip_subtree()
        else:
            text = element.text if event == "start" else element.tail
            num_chars -= len("".join((text or "").split()))
    return num_chars <= 0


def visible_text(text: str) -> str:
    """Remove invisible characters, spaces at line ends, and all but one of several blank lines."""
    text = _SPACES.sub(" ", _INVISIBLE.sub("", _LINE_BREAKS.sub("\n", text)))
    lines = (line.rstrip(" ") for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _convert(html: str, *, url: str, dropped: tuple[str, ...]) -> str:
    text = _crawl4ai()(_clean(html, url=url, dropped=dropped))
    if text.startswith(_FAILURES):
        raise UnreadablePageError(text)
    return re.sub(r"^ *\|.*$", lambda row: _one_spaced(row[0]), visible_text(text), flags=re.M)


def _one_spaced(row: str) -> str:
    return re.sub(" +", " ", row).lstrip(" ")


def _clean(html: str, *, url: str, dropped: tuple[str, ...]) -> str:
    """Return the page's body as HTML, without what a reader would not see and with short links."""
    import lxml.etree
    import lxml.html  # type: ignore[import-untyped]  # lxml ships no types

    body = _body_of(html)
    if body is None:
        return ""
    base = body.getroottree().find(".//base[@href]")
    # Renamed and dropped together: drop_tree() copies all text before an element, for each of them.
    for element in [part for part in body.iterdescendants() if _is_unseen(part, dropped)]:
        element.tag = "template"
    lxml.etree.strip_elements(body, "template", with_tail=False)
    for element in list(body.iter("noscript")):
        element.tag = "span"
    _shorten_links(body, url=url, base=url if base is None else _join(url, base.get("href")) or url)
    write_marks(body, _BLOCKS)
    _simplify_tables(body)
    return str(lxml.html.tostring(body, encoding="unicode", with_tail=False))


def _body_of(html: str) -> Any:
    """Return the page's body as lxml reads it; None for a page without one."""
    import lxml.etree
    import lxml.html

    # As bytes, because lxml refuses a str that declares an encoding. It ends a page at a NUL.
    source = html.replace("\0", "").encode(errors="replace")
    parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
    try:
        body = lxml.html.document_fromstring(source, parser=parser).find("body")
    except lxml.etree.ParserError:  # lxml's word for a document without any element
        return None
    if body is not None:
        # To lxml's parser, which is older than HTML 5, all that follows an embed is inside of it.
        lxml.etree.strip_tags(body, "embed")
    return body


def _is_unseen(element: Any, dropped: tuple[str, ...]) -> bool:
    if element.tag in _DROPPED_TAGS or element.tag in dropped or _is_hidden(element):
        return True
    return "nav" in dropped and element.get("role") in _NAVIGATION_ROLES


def _is_hidden(element: Any) -> bool:
    if element.get("hidden") is not None or element.get("aria-hidden") == "true":
        return True
    style = element.get("style")
    return style is not None and bool(_HIDDEN_STYLE.search(re.sub(r"\s", "", style.lower())))


def _shorten_links(body: Any, *, url: str, base: str) -> None:
    """Rewrite links to what the model may pass on: a path on this host, a whole URL elsewhere.

    A link that leads nowhere else keeps only its text.
    """
    here = urlsplit(url)
    page = urldefrag(url).url
    for link in body.iter("a"):
        target = _join(base, link.get("href", ""))
        link.attrib.clear()
        if not target or target == page or not any(map(str.strip, link.itertext())):
            continue
        parts = urlsplit(target)
        if parts.netloc == here.netloc:
            target = parts._replace(scheme="", netloc="", path=parts.path or "/").geturl()
        if len(target) <= _MAX_LINK_CHARS:
            link.set("href", target)


def _join(base: str, href: str) -> str:
    """Return a link's absolute http(s) URL without fragment; "" where there is none to follow."""
    href = href.strip()
    try:
        target = urldefrag(urljoin(base, href)).url
        scheme = urlsplit(target).scheme
    except ValueError:  # "http://[": not a URL
        return ""
    if not href or href.startswith("#") or scheme not in ("http", "https"):
        return ""
    return quote(target, safe="!$%&'*+,/:;=?@[]~")


def _simplify_tables(body: Any) -> None:
    """Dissolve tables that only lay a page out; in others put each cell on one line.

    Tags are renamed, not removed: removing an element costs time in proportion to its siblings.
    """
    layout = {outer for table in body.iter("table") for outer in table.iterancestors("table")}
    for part in list(body.iter(*_TABLE_PARTS)):
        table = next(part.iterancestors("table"), None)
        if table is None or table in layout:
            part.tag = "div"
    for table in layout:
        table.tag = "div"
    for cell in body.iter("td", "th"):
        for block in list(cell.iterdescendants(*_BLOCKS)):
            block.text = f" {block.text or ''}"
            block.tail = f" {block.tail or ''}"
            block.tag = "span"


@cache
def _crawl4ai() -> Callable[[str], str]:
    """Load crawl4ai's converter."""
    with loading_crawl4ai():
        from crawl4ai.markdown_generation_strategy import DefaultMarkdownGenerator

    options = {
        "body_width": 0,
        "ignore_emphasis": True,
        "ignore_images": True,
        "ignore_links": False,
        "mark_code": False,
        "protect_links": False,
        "single_line_break": True,
    }
    generator = DefaultMarkdownGenerator(options=options)
    return lambda html: str(generator.generate_markdown(html, citations=False).raw_markdown)
