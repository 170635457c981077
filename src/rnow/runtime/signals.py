"""Ctrl-C, SIGTERM, SIGHUP and time limits: once is a request, twice is now.

A terminal that is closed may send SIGHUP several times, so of that one twice is once.

Long waits that may be cut (rollouts) run through `StopRequest.cut`; what must end and be saved (an
optimizer update) simply runs, and the loop asks `check` afterwards.
"""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from rnow.errors import Interrupted
from rnow.runtime.side_by_side import end_tasks
from rnow.runtime.stop_signals import end_now, note_request, stop_signals

Result = TypeVar("Result")


class StopRequest:
    """Remembers that someone asked the run to stop, or that its time is up.

    with StopRequest(max_time_s=60) as stop:  # inside the running event loop
        await stop.cut(rollouts())

    Signals that ask it to stop are its own until the block ends.
    """

    def __init__(self, *, max_time_s: float | None = None) -> None:
        self._asked = asyncio.Event()
        self._why: Interrupted | None = None
        self._max_time_s = max_time_s
        self._before: dict[signal.Signals, Any] = {}  # who heard them, and will again

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in stop_signals():
            self._before[number] = signal.getsignal(number)
            loop.add_signal_handler(number, self._on_signal, number)
        if self._max_time_s is not None:
            loop.call_later(self._max_time_s, self._ask, Interrupted("trainer.max_time_s", 0))
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, before)
        if self._why is not None and self._why.exit_code:
            note_request()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._why is not None and self._why.exit_code:
            if number == signal.SIGHUP:
                return
            end_now(number)
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        self._ask(Interrupted(name, 128 + number))

    def ask(self, name: str) -> None:
        """Ask as the first Ctrl-C does; `name` is what was pressed in its place."""
        self._ask(Interrupted(name, 128 + signal.SIGINT))

    def _ask(self, why: Interrupted) -> None:
        # A signal is the stronger reason, whichever of the two came first.
        if self._why is None or why.exit_code:
            self._why = why
        self._asked.set()

    def check(self) -> None:
        """Raise Interrupted if the run should stop here."""
        if self._why is not None:
            raise self._why

    async def cut(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await `work`, but cancel it and raise Interrupted as soon as a stop is asked for."""
        try:
            self.check()
        except Interrupted:
            work.close()  # else Python warns on the terminal that it was never awaited
            raise
        task = asyncio.create_task(work)
        asked = asyncio.create_task(self._asked.wait())
        try:
            await asyncio.wait((task, asked), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.check()
            return task.result()
        finally:
            await end_tasks(task, asked)
