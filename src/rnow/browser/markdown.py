"""HTML -> the markdown that the model reads. The conversion is crawl4ai's; what goes into it is decided here.

What a reader would not see is taken out first: scripts, styles, comments, forms, hidden elements, navigation. Then
links are made short, because a 100 KB page holds hundreds of them: `[text](/path)` on the page's own host, the whole
URL elsewhere, and the bare text where there is nothing to follow. Emphasis and images cost tokens and say little.

Not done here: styles in a style sheet are not evaluated, so text hidden by one is seen. Importing this module is
cheap; crawl4ai (about a second) is loaded by the first conversion.
"""

import atexit
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urljoin, urlsplit

__all__ = ["UnreadablePageError", "html_to_markdown", "visible_text"]

# crawl4ai answers with these words where its own code raised; such a text must not pass for the page.
_FAILURES = ("Error converting HTML to markdown:", "Error in markdown generation:")

_DROPPED_TAGS = (
    "script style noscript template svg canvas iframe frame object embed video audio map head link meta "
    "input button select textarea datalist dialog"
).split()
_NAVIGATION = (
    "descendant-or-self::*[self::nav or self::footer or @role='navigation' or @role='contentinfo' or @role='search']"
)
_HIDDEN_STYLE = re.compile(
    r"(?:^|;)(?:display:none|visibility:(?:hidden|collapse)|opacity:0(?:\.0+)?|font-size:0[a-z%]*)(?:!important)?(?:;|$)"
)
_BLOCKS_IN_CELLS = ("p", "div", "br", "li", "ul", "ol", "dl", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "h6", "pre")

# Control characters, soft hyphen, zero-width, bidi, invisible operators, interlinear marks, tags, variation selectors.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_SPACES = re.compile("[\t \xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LINE_BREAKS = re.compile("\r\n|[\r\u2028\u2029]")


class UnreadablePageError(Exception):
    """The page's HTML cannot be turned into text. The message is for the log, not for the model."""


def html_to_markdown(html: str, *, url: str) -> str:
    """Return what a reader would see of `html`, as markdown without blank ends. `url`: where the page stands."""
    text = _generator()(_clean(html, url=url))
    if text.startswith(_FAILURES):
        raise UnreadablePageError(text)
    return visible_text(text)


def visible_text(text: str) -> str:
    """Remove invisible characters, spaces at line ends, and all but one of several blank lines."""
    text = _SPACES.sub(" ", _INVISIBLE.sub("", _LINE_BREAKS.sub("\n", text)))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" +\n", "\n", text)).strip()


def _clean(html: str, *, url: str) -> str:
    """Return the body of the page as HTML, without what a reader would not see."""
    import lxml.etree
    import lxml.html

    html = _INVISIBLE.sub("", html)
    try:
        # Bytes, because lxml refuses text that declares an encoding.
        parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True)
        page = lxml.html.document_fromstring(html.encode(), parser=parser)
    except (lxml.etree.LxmlError, ValueError) as error:
        if not html.strip():
            return ""
        raise UnreadablePageError(str(error)) from error
    base = page.find(".//base[@href]")
    base_url = url if base is None else urljoin(url, base.get("href"))
    body = page.find("body")
    if body is None:
        return ""
    lxml.etree.strip_elements(body, *_DROPPED_TAGS, with_tail=False)
    _drop(element for element in body.iter() if _is_hidden(element))
    navigation = [element for element in body.xpath(_NAVIGATION) if element is not body]
    # A page that is nothing but navigation (an index) is read as it is.
    if len(_text_outside(body, navigation)) > 0:
        _drop(iter(navigation))
    _shorten_links(body, base_url=base_url, page_url=url)
    _flatten_tables(body)
    text: str = lxml.html.tostring(body, encoding="unicode", with_tail=False)
    return text


def _is_hidden(element: Any) -> bool:
    if element.get("hidden") is not None or element.get("aria-hidden") == "true":
        return True
    style = element.get("style")
    return style is not None and bool(_HIDDEN_STYLE.search(re.sub(r"\s", "", style.lower())))


def _text_outside(body: Any, navigation: list[Any]) -> str:
    inside = sum(len(element.text_content().strip()) for element in navigation)
    return "x" if len(body.text_content().strip()) > inside else ""


def _drop(elements: Iterator[Any]) -> None:
    """Remove elements with all they hold; the text after each one stays."""
    for element in list(elements):
        if element.getparent() is not None:
            element.drop_tree()
