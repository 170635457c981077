"""The text that the model gets of a page: one header line, one page of markdown, how to go on.

    https://clinic.test/trial/1 (status 200, page 1 of 2)

    # Trial 1
    …
    [Continues: browse(url, page=2)]

A page is cut at line breaks so that header, text and last line together stay within the limiter's
tokens. The form is fixed: models are trained on it. Pure functions; nothing here fetches.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

_MAX_TEXT_BYTES = 900_000  # of one document; the last page says where the rest was left out
_MAX_HEADER_URL_CHARS = 200
_EMPTY = "(no text on this page)"
_LEFT_OUT = "[The document is longer; the rest was left out.]"


class Limiter(Protocol):
    """Counts in the student's tokens. TokenLimiter of rnow.tools.limit is one."""

    @property
    def max_tokens(self) -> int | None: ...  # cap of one tool answer; None: no cap

    def count(self, text: str) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What one URL holds, ready to be shown.

    Document(url="https://clinic.test/", status=200, pages=("# Clinic",))

    `source` and `is_stored` are those of the page that it was made of.
    """

    url: str  # where the text came from, after redirects
    status: int  # HTTP status
    pages: tuple[str, ...]  # at least one
    source: str = "http"
    is_stored: bool = False

    @property
    def num_bytes(self) -> int:
        return sum(len(page.encode()) for page in self.pages)


def show_page(document: Document, page: int) -> str:
    """Return page `page`, from 1 to the number of pages, under its header line."""
    num_pages = len(document.pages)
    text = (
        f"{_header(document.url, document.status, page, num_pages)}\n\n{document.pages[page - 1]}"
    )
    return text if page == num_pages else f"{text}\n{_next(page + 1)}"


def paginate(text: str, *, url: str, status: int, limiter: Limiter | None = None) -> Document:
    """Cut a text at line breaks into pages that fit, header and last line included, the limiter."""
    encoded = text.encode()
    if len(encoded) > _MAX_TEXT_BYTES:
        kept = encoded[:_MAX_TEXT_BYTES].decode(errors="ignore")
        text = f"{kept.rpartition(chr(10))[0] or kept}\n{_LEFT_OUT}"
    text = text if text.strip() else _EMPTY
    if limiter is None or limiter.max_tokens is None:
        return Document(url=url, status=status, pages=(text,))
    around = limiter.count(f"{_header(url, status, 999, 999)}\n\n\n{_next(999)}")
    # A cap so small that the header alone breaks it is kept by the worker, which cuts every answer.
    budget = max(limiter.max_tokens - around, limiter.max_tokens // 4, 1)
    return Document(url=url, status=status, pages=tuple(_split(text, budget, limiter)))


def _header(url: str, status: int, page: int, num_pages: int) -> str:
    shown = url if len(url) <= _MAX_HEADER_URL_CHARS else f"{url[:_MAX_HEADER_URL_CHARS]}…"
    return f"{shown} (status {status}, page {page} of {num_pages})"


def _next(page: int) -> str:
    return f"[Continues: browse(url, page={page})]"


def _split(text: str, budget: int, limiter: Limiter) -> Iterator[str]:
    """Yield stretches of whole lines within `budget` tokens; only an overlong line is divided.

    Each line is counted once and the counts are added up, so the cost is linear. Tokens that reach
    over a line break make the sum a guess: each stretch is counted once more, as a whole, and gives
    lines back where it does not fit.
    """
    waiting = deque(piece for line in text.split("\n") for piece in _pieces(line, budget, limiter))
    while waiting:
        taken: list[str] = []
        num_tokens = 0
        while waiting and (not taken or num_tokens + waiting[0][1] <= budget):
            piece, count = waiting.popleft()
            taken.append(piece)
            num_tokens += count
        while len(taken) > 1 and limiter.count("\n".join(taken)) > budget:
            piece = taken.pop()
            waiting.appendleft((piece, limiter.count(f"{piece}\n")))
        stretch = "\n".join(taken).strip("\n")
        if stretch:
            yield stretch


def _pieces(line: str, budget: int, limiter: Limiter) -> Iterator[tuple[str, int]]:
    """Yield a line, or its halves until they fit, each with its count of tokens."""
    count = limiter.count(f"{line}\n")
    if count <= budget or len(line) < 2:
        yield line, count
        return
    middle = len(line) // 2
    space = line.find(" ", middle)
    cut = space if 0 < space < len(line) - 1 else middle
    yield from _pieces(line[:cut], budget, limiter)
    yield from _pieces(line[cut:].lstrip(" "), budget, limiter)
