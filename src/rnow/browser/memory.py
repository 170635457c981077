"""Documents in memory, so that the rollouts of a group fetch a page once."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from rnow.browser.text.pagination import Document

ReadDocument = Callable[[], Awaitable[Document]]


@dataclass(slots=True)
class _Entry:
    document: Document
    is_claimed: bool = False  # some caller has had it


@dataclass(slots=True)
class _Coming:
    task: "asyncio.Task[_Entry]"
    num_callers: int = 0  # that wait for it


class PageCache:
    """The documents read last, up to a number of bytes, and those on their way.

    Callers that ask for a page on its way wait for the same answer; when the last of them has given
    up, the reading is ended. A page that could not be read is not kept: whoever asks later tries
    again.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[str, _Entry] = OrderedDict()  # the least recently used first
        self._coming: dict[str, _Coming] = {}
        self._reading: set[asyncio.Task[_Entry]] = set()  # those that are being ended, too

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    async def get(self, key: str, read: ReadDocument) -> tuple[Document, bool]:
        """Return the document, and whether an earlier caller has had it: `read` is called once.

        Raises what `read` raises.
        """
        entry = self._kept.get(key)
        if entry is None:
            entry = await self._wait(key, self._coming.get(key) or self._start(key, read))
        else:
            self._kept.move_to_end(key)
        is_shared, entry.is_claimed = entry.is_claimed, True
        return entry.document, is_shared

    async def aclose(self) -> None:
        """Stop what is on its way."""
        reading = list(self._reading)
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)

    async def _wait(self, key: str, coming: _Coming) -> _Entry:
        coming.num_callers += 1
        try:
            # Shielded: a caller that gives up takes the page from none of the others.
            return await asyncio.shield(coming.task)
        finally:
            coming.num_callers -= 1
            if not coming.num_callers and not coming.task.done():
                coming.task.cancel()
                self._forget(key, coming)  # whoever asks now has it read anew

    def _start(self, key: str, read: ReadDocument) -> _Coming:
        async def run() -> _Entry:
            return _Entry(await read())

        def ended(task: "asyncio.Task[_Entry]") -> None:
            self._reading.discard(task)
            self._forget(key, coming)
            # Asking for the exception also keeps asyncio quiet where every caller has given up.
            if not task.cancelled() and task.exception() is None:
                self._keep(key, task.result())

        task = asyncio.get_running_loop().create_task(run(), name=f"page {key}")
        self._reading.add(task)
        coming = self._coming[key] = _Coming(task)
        task.add_done_callback(ended)
        return coming

    def _forget(self, key: str, coming: _Coming) -> None:
        if self._coming.get(key) is coming:
            del self._coming[key]

    def _keep(self, key: str, entry: _Entry) -> None:
        self._kept[key] = entry
        self._num_bytes += entry.document.num_bytes
        while self._num_bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._num_bytes -= oldest.document.num_bytes
