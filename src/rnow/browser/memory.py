"""Documents in memory, so that the rollouts of a group fetch a page once."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from rnow.browser.text.pagination import Document
from rnow.runtime.side_by_side import end_tasks

ReadDocument = Callable[[], Coroutine[Any, Any, Document]]


@dataclass(slots=True, eq=False)
class _Entry:
    reading: asyncio.Task[Document]
    num_callers: int = 0  # that wait for it
    num_bytes: int = 0  # once it is read
    is_claimed: bool = False  # some caller has had it


class PageCache:
    """The documents read last, up to a number of bytes, and those on their way.

    Callers that ask for a page on its way wait for the same answer; when the last of them has given
    up, the reading is ended. A page that could not be read is not kept: whoever asks later tries
    again.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the least recently used first
        self._reading: set[asyncio.Task[Document]] = set()  # those that are being ended, too

    async def get(self, key: str, read: ReadDocument) -> tuple[Document, bool]:
        """Return the document, and whether an earlier caller has had it: `read` is called once.

        Raises what `read` raises.
        """
        entry = self._entries.get(key) or self._start(key, read)
        self._entries.move_to_end(key)
        entry.num_callers += 1
        try:
            # Shielded: a caller that gives up takes the page from none of the others.
            document = await asyncio.shield(entry.reading)
        finally:
            entry.num_callers -= 1
            if not entry.num_callers and not entry.reading.done():
                entry.reading.cancel()
                self._forget(key, entry)  # whoever asks now has it read anew
        is_shared, entry.is_claimed = entry.is_claimed, True
        return document, is_shared

    async def aclose(self) -> None:
        """Stop what is on its way."""
        await end_tasks(*self._reading)

    def _start(self, key: str, read: ReadDocument) -> _Entry:
        def ended(task: asyncio.Task[Document]) -> None:
            self._reading.discard(task)
            # Asking for the exception also keeps asyncio quiet where every caller has given up.
            if task.cancelled() or task.exception() is not None:
                self._forget(key, entry)
            elif self._entries.get(key) is entry:
                entry.num_bytes = task.result().num_bytes
                self.num_bytes += entry.num_bytes
                self._forget_oldest()

        task = asyncio.get_running_loop().create_task(read(), name=f"page {key}")
        self._reading.add(task)
        entry = self._entries[key] = _Entry(task)
        task.add_done_callback(ended)
        return entry

    def _forget(self, key: str, entry: _Entry) -> None:
        if self._entries.get(key) is entry:
            del self._entries[key]
            self.num_bytes -= entry.num_bytes

    def _forget_oldest(self) -> None:
        for key, entry in list(self._entries.items()):
            if self.num_bytes <= self._max_bytes:
                break
            if entry.num_bytes:
                self._forget(key, entry)
