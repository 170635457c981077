"""Single keys of a terminal, without Enter, while something shows itself there.

A terminal that is read so neither echoes nor waits for lines: whoever ends the process at once
gives it back first (stop_signals.py). Ctrl-C is a signal as ever.
"""

import asyncio
import os
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from rnow.runtime.stop_signals import before_end

_SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def hearing(stream: TextIO | None, on_key: Callable[[str], None]) -> Iterator[None]:
    """Call `on_key` for each key typed on `stream` while the block runs, inside an event loop.

    Nothing is heard where it is no terminal, or that of another program: whoever is in the
    background and touches its terminal is stopped.
    """
    file = _terminal(stream)
    if file is None:
        yield
        return
    loop, before = asyncio.get_running_loop(), termios.tcgetattr(file)

    def restore() -> None:
        with suppress(termios.error, OSError):
            termios.tcsetattr(file, termios.TCSANOW, before)

    def give_back() -> None:
        restore()
        with suppress(OSError):
            os.write(1, _SHOW_CURSOR)

    def read() -> None:
        typed = b""
        with suppress(OSError):
            typed = os.read(file, 64) if os.tcgetpgrp(file) == os.getpgrp() else b""
        if not typed:  # hung up, or in the background by now
            loop.remove_reader(file)
        for key in typed.decode(errors="replace"):
            on_key(key)

    tty.setcbreak(file, termios.TCSANOW)
    before_end.append(give_back)
    loop.add_reader(file, read)
    try:
        yield
    finally:
        loop.remove_reader(file)
        before_end.remove(give_back)
        restore()


def _terminal(stream: TextIO | None) -> int | None:
    with suppress(OSError, ValueError):  # closed, or no file at all
        file = -1 if stream is None else stream.fileno()
        if os.isatty(file) and os.tcgetpgrp(file) == os.getpgrp():
            return file
    return None
