"""What the scripts that make a page of docs/ have in common: write it, or compare (--check)."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def write_or_check(page: Path, make: Callable[[], str], *, script: str, about: str | None) -> int:
    """Write what `make` returns to `page`; with --check return 1 where something else is there.

    `script` is the file of the caller, `about` its docstring.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    text = make()
    if not options.check:
        page.write_text(text, encoding="utf-8")
        return 0
    if page.is_file() and page.read_text(encoding="utf-8") == text:
        return 0
    name = f"scripts/{Path(script).name}"
    print(f"{page} is out of date: run python {name}", file=sys.stderr)
    return 1
