"""Raised, lowered and struck text, written so that numbers stay what they are.

Without its markup 10<sup>5</sup> reads 105, and <del>$105</del><ins>$99</ins> reads $105$99:

    10<sup>5</sup>      10^5        e<sup>x+1</sup>               e^(x+1)
    CO<sub>2</sub>      CO_2        1<sup>1</sup>/<sub>2</sub>    1 1/2
    <del>$105</del>     ~~$105~~    <mfrac><mn>1</mn><mn>2</mn>   1/2

Left as they are: 1st, 2nd, signs without a letter or digit (®), and what is in brackets already,
as notes are ([3]).
"""

import re
from typing import Any

_ORDINALS = ("st", "nd", "rd", "th")
_ONE_TERM = re.compile(r"[+\-\u2212\u2013\u00b1]?[\w.,'\u2032]+")
_STROKES = ("/", "\u2044", "\u2215")  # the last two: fraction slash, division slash
# MathML: what stands before each child but the first.
_MATH = {"msup": "^", "msub": "_", "msubsup": "_^", "mfrac": "/", "mmultiscripts": "_^"}


def write_marks(body: Any, blocks: tuple[str, ...]) -> None:
    """Put marks into the text of an lxml tree; what holds one of `blocks` is on its own line."""
    # From the inside out: what is raised within what is raised is read as one term with its mark.
    for element in reversed(list(body.iter("sup", "sub", "del", "s", "strike", "msqrt", *_MATH))):
        if next(element.iterdescendants(*blocks), None) is not None:
            continue
        if element.tag in _MATH:
            for child, mark in zip(list(element)[1:], _MATH[element.tag], strict=False):
                _lead(child, mark)
            if element.tag == "mfrac" and len(element) > 1:
                _lead(element[0], "")
        elif element.tag == "msqrt":
            _lead(element, "\u221a")
        elif element.tag not in ("sup", "sub"):
            if _text_of(element):
                _enclose(element, "~~", "~~")
        elif not _is_half_of_a_fraction(element):
            _raise(element)
        element.tag = "span"


def _raise(element: Any) -> None:
    text = _text_of(element)
    is_bracketed = text[:1] in ("[", "(") and text[-1:] in ("]", ")")
    if re.search(r"[^\W_]", text) and text.lower() not in _ORDINALS and not is_bracketed:
        _lead(element, "^" if element.tag == "sup" else "_")


def _is_half_of_a_fraction(element: Any) -> bool:
    """Say whether `element` is a half of a fraction like 1/2; the upper one is written."""
    other = element.getnext() if element.tag == "sup" else element.getprevious()
    if other is None or {element.tag, other.get("data-half") or other.tag} != {"sup", "sub"}:
        return False
    upper = element if element.tag == "sup" else other
    if (upper.tail or "").strip() not in _STROKES:
        return False
    element.set("data-half", element.tag)
    if element is upper:
        before = element.getprevious()
        ahead = element.getparent().text if before is None else before.tail
        element.tail = "/"
        if (ahead or "")[-1:].isdigit():
            element.text = f" {element.text or ''}"
    return True


def _lead(element: Any, mark: str) -> None:
    """Put a mark before an element's text, and brackets around more than one term."""
    text = _text_of(element)
    if text:
        is_one = _ONE_TERM.fullmatch(text) is not None
        _enclose(element, mark if is_one else f"{mark}(", "" if is_one else ")")


def _enclose(element: Any, before: str, after: str) -> None:
    element.text = before + (element.text or "").lstrip()
    if not after:
        return
    if len(element):
        element[-1].tail = (element[-1].tail or "").rstrip() + after
    else:
        element.text = element.text.rstrip() + after


def _text_of(element: Any) -> str:
    return "".join(element.itertext()).strip()
