"""PDF -> text, by pypdf, in a process of its own (`python -m rnow.browser.text.pdf`).

A PDF is a program that a stranger wrote for a large interpreter. So it runs where nothing is lost:
in a child without the environment's secrets, with limits on memory, processor time, pages and text,
killed at the deadline. Text that is only an image is not read.
"""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rnow.browser.errors import BrowseError

if TYPE_CHECKING:
    from pypdf import PdfReader

MAX_PAGES = 200
_MAX_MEMORY_BYTES = 1_000_000_000  # of address space; pypdf itself maps 100 MB
_MAX_TEXT_CHARS = 900_000
_TIMEOUT_S = 15.0
_TOO_LONG = "[The document is longer; the rest was left out.]"
# What Python needs to start; nothing of .env.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "HOME", "LANG")


def pdf_to_text(body: bytes, *, timeout_s: float = _TIMEOUT_S) -> str:
    """Return the text of a PDF, page by page under headings; blocks. Raises BrowseError."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "rnow.browser.text.pdf"],
            input=body,
            capture_output=True,
            timeout=timeout_s,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
    except subprocess.TimeoutExpired as error:
        raise BrowseError("timeout", "this PDF took too long to be read.") from error
    if done.returncode != 0:
        cause = RuntimeError(f"exit code {done.returncode}: {done.stderr[-500:]!r}")
        raise BrowseError("unreadable", "this PDF could not be turned into text.") from cause
    return done.stdout.decode(errors="replace")


def main() -> None:
    """Read a PDF from standard input, write its text to standard output."""
    if sys.platform != "darwin":  # whose kernel refuses this limit
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    cpu_s = int(_TIMEOUT_S)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    from io import BytesIO

    from pypdf import PdfReader

    reader = PdfReader(BytesIO(sys.stdin.buffer.read()))
    sys.stdout.buffer.write("\n\n".join(_pages(reader)).encode(errors="replace"))


def _pages(reader: "PdfReader") -> Iterator[str]:
    num_chars = 0
    for number, page in enumerate(reader.pages, start=1):
        if num_chars > _MAX_TEXT_CHARS:
            return  # whoever shows the text cuts it here, and says so
        if number > MAX_PAGES:
            yield _TOO_LONG
            return
        text = re.sub(r"[ \t]+\n", "\n", page.extract_text()).strip()[:_MAX_TEXT_CHARS]
        num_chars += len(text)
        if text:
            yield f"## Page {number}\n\n{text}"


if __name__ == "__main__":
    main()
