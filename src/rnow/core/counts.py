"""How a tool counts what it did.

`count("browser/fetched")` anywhere below a call ends in that call's answer. The counters of one
call are found through a context variable, which tasks inherit and threads started by a tool do not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_counts: ContextVar[dict[str, int] | None] = ContextVar("counts of a tool call", default=None)


def count(name: str, n: int = 1) -> None:
    """Add `n` to the running call's counter; outside of a call nothing is counted."""
    counts = _counts.get()
    if counts is not None:
        counts[name] = counts.get(name, 0) + n


@contextmanager
def collecting(counts: dict[str, int]) -> Iterator[None]:
    """Let what is counted in this block go to `counts`."""
    token = _counts.set(counts)
    try:
        yield
    finally:
        _counts.reset(token)
