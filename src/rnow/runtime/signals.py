"""Ctrl-C, SIGTERM, SIGHUP and time limits: once is a request, twice is now.

A terminal that is closed may send SIGHUP several times, so of that one twice is once; under nohup,
which has it ignored, it stays ignored.

Long waits that may be cut (rollouts) run through `StopRequest.cut`; what must end and be saved (an
optimizer update) simply runs, and the loop asks `check` afterwards.
"""

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from rnow.errors import Interrupted

Result = TypeVar("Result")


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a program to stop."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *(() if is_ignored else (signal.SIGHUP,)))


class StopRequest:
    """Remembers that someone asked the run to stop. Made inside the running event loop."""

    def __init__(self, *, max_time_s: float | None = None) -> None:
        self._asked = asyncio.Event()
        self._why: Interrupted | None = None
        self._give_up_at = None if max_time_s is None else time.monotonic() + max_time_s

    def listen(self) -> None:
        """Take over the signals that stop a run until `forget`."""
        loop = asyncio.get_running_loop()
        for number in stop_signals():
            loop.add_signal_handler(number, self._on_signal, number)

    def forget(self) -> None:
        loop = asyncio.get_running_loop()
        for number in stop_signals():
            loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._why is not None:
            if number == signal.SIGHUP:
                return
            # The second time: whoever asks twice wants the process gone. Every write is either
            # done or absent, so nothing on disk can be hurt.
            os._exit(128 + number)
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        self._why = Interrupted(name, 128 + number)
        self._asked.set()

    def check(self) -> None:
        """Raise Interrupted if the run should stop here."""
        if self._why is not None:
            raise self._why
        if self._give_up_at is not None and time.monotonic() > self._give_up_at:
            raise Interrupted("trainer.max_time_s", 0)

    async def cut(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await `work`, but cancel it and raise Interrupted as soon as a stop is asked for."""
        try:
            self.check()
        except Interrupted:
            work.close()  # else Python warns on the terminal that it was never awaited
            raise
        task = asyncio.create_task(work)
        asked = asyncio.create_task(self._asked.wait())
        left = None if self._give_up_at is None else self._give_up_at - time.monotonic()
        try:
            await asyncio.wait((task, asked), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            self.check()
            raise Interrupted("trainer.max_time_s", 0)
        finally:
            for waiting in (task, asked):
                waiting.cancel()
            await asyncio.gather(task, asked, return_exceptions=True)
