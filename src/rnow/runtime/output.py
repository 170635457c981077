"""Standard output and error that no command fails on, and no run.

| what a terminal or a shell does | what happens |
|---|---|
| an encoding without ✓, – or × | signs in ASCII: v, -, x; what has none is ? |
| the reader has gone (`| head`), the terminal is closed | the rest is lost, the command goes on |
| the disk of a file is full | it is said once, and the command ends |
| a stream was closed before (`>&-`) | as if to /dev/null |
"""

import codecs
import errno
import io
import os
import sys
from typing import Any

_SIGNS = str.maketrans(
    {
        **{"✓": "v", "✗": "x", "✔": "v", "✘": "x", "×": "x", "·": ".", "•": "*", "…": "..."},
        **{"–": "-", "—": "-", "−": "-", "─": "-", "━": "-", "│": "|", "→": "->", "←": "<-"},
        **{"’": "'", "‘": "'", "“": '"', "”": '"', "≤": "<=", "≥": ">=", "±": "+-", "\xa0": " "},
        **{"█": "#", "▁": "_", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "↓": "v", "↑": "^"},
    }
)
_CLOSED_TERMINAL = (errno.EPIPE, errno.EIO)


def settle_streams() -> None:
    """Replace sys.stdout and sys.stderr where they are those of the process."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one. Left free, the next file would get it.
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("rnow.ascii", _in_ascii)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not None and stream is not getattr(sys, f"__{name}__"):
            continue  # a test's, or another program's
        if stream is not None:
            stream.flush()
        setattr(sys, name, _stream(number, stream))


class _Output(io.FileIO):
    """A stream whose reader may go away."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            lost = _CLOSED_TERMINAL if self._was_terminal else (errno.EPIPE,)
            # What is raised is said once: Python would try again at its end, and show a traceback.
            self._lose_the_rest()
            if error.errno not in lost:
                raise
        return memoryview(data).nbytes

    def _lose_the_rest(self) -> None:
        """Lead this number nowhere, for all that writes to it, also in libraries and children."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self._was_terminal = self.isatty()


def _stream(number: int, before: "io.TextIOWrapper | None") -> io.TextIOWrapper:
    raw = _Output(number)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding="utf-8" if before is None else before.encoding,
        errors="rnow.ascii",
        line_buffering=number == 2 or raw.isatty(),
        write_through=before is not None and before.write_through,
    )


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_SIGNS)
    return text.encode("ascii", errors="replace").decode("ascii"), error.end
