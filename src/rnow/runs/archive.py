"""Old journals take a fraction of the room: 000041.jsonl becomes 000041.jsonl.zst.

A step whose checkpoint is in place is not rolled out again, so its file is only read from then on.
Each of these may be killed at any instant: a file exists in one form or, for a moment, in both.
"""

import os
import re
from pathlib import Path

import zstandard

from rnow.runtime.atomic_files import replace_bytes


def archived(path: Path) -> Path:
    """archived(Path("000041.jsonl")) == Path("000041.jsonl.zst")."""
    return path.with_name(f"{path.name}.zst")


def journals(folder: Path) -> list[Path]:
    """Return 000000.jsonl, 000001.jsonl, … in order, whichever form each is in."""
    found = [*folder.glob("[0-9]*.jsonl"), *folder.glob("[0-9]*.jsonl.zst")]
    return sorted({path.with_name(path.name.removesuffix(".zst")) for path in found})


def compress(path: Path) -> None:
    """Put the compressed form in the place of `path`."""
    replace_bytes(archived(path), zstandard.ZstdCompressor().compress(path.read_bytes()))
    path.unlink()


def expand(path: Path) -> None:
    """Put `path` in the place of its compressed form, if there is only that."""
    if not path.exists() and archived(path).exists():
        replace_bytes(path, read_bytes(path))
    archived(path).unlink(missing_ok=True)


def read_bytes(path: Path) -> bytes:
    """Return what `path` holds, whichever form it is in; nothing where there is neither."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if not archived(path).exists():
            return b""
        return zstandard.ZstdDecompressor().decompress(archived(path).read_bytes())


def forget_oldest(folder: Path, *, max_bytes: float) -> list[Path]:
    """Remove the oldest compressed files until all of `folder` fits; return what was removed."""
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    total, removed = sum(sizes.values()), []
    compressed = [name for name in sizes if name.endswith(".zst")]
    for name in sorted(compressed, key=lambda name: (re.findall(r"\d+", name), name)):
        if total <= max_bytes:
            break
        (folder / name).unlink()
        total -= sizes[name]
        removed.append(folder / name)
    return removed
