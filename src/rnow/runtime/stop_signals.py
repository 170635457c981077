"""Which signals ask a program to stop, and what they do to one: once is a request, twice is now.

A terminal that is closed may send SIGHUP several times, so of that one twice is once. Nothing here
imports asyncio: a command that needs no event loop hears signals, too.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

before_end: list[Callable[[], None]] = []  # what an end at once does first, to a terminal
_is_asked = False  # by a first signal, or by a key in its place
_on_first: Callable[[signal.Signals], None] | None = None


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return them but those that came ignored and stay so.

    nohup has SIGHUP ignored, and a script has Ctrl-C where it starts a program in the background.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return tuple(each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN)


def hear_stop_signals() -> None:
    """Have the first signal end this program tidily, and a second at once, wherever it is.

    The default would end it without a word, and leave its temporary folders behind.
    """
    global _is_asked
    _is_asked = False
    for number in stop_signals():
        signal.signal(number, _hear)
    atexit.register(_end_undisturbed)


def note_request() -> None:
    """Have the next signal be the second: somebody else has heard the first."""
    global _is_asked
    _is_asked = True


@contextmanager
def first_signal(do: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Have the first signal do this alone while the block runs; see `raise_for` for afterwards."""
    global _on_first
    before, _on_first = _on_first, do
    try:
        yield
    finally:
        _on_first = before


def raise_for(number: signal.Signals) -> NoReturn:
    """End the program tidily."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def end_now(number: signal.Signals) -> NoReturn:
    """End the process: whoever asks twice wants it gone.

    Every write is either done or absent, so nothing on disk can be hurt; child processes end with
    this one; and nobody tells of the tasks that are left.
    """
    for do in before_end:
        do()
    os._exit(128 + number)


def _end_undisturbed() -> None:
    # The last that runs. Python's own end, which is short, would first take the handlers away, and
    # a signal the exit code.
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)


def _hear(number: int, frame: FrameType | None) -> None:
    heard = signal.Signals(number)
    if not _is_asked:
        note_request()
        (_on_first or raise_for)(heard)
    elif heard != signal.SIGHUP:
        end_now(heard)
