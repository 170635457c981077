"""Writes that are either done or not: temp file, fsync, rename."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rnow.killpoints import point

__all__ = ["recover_folder", "replace_file", "replace_folder"]


def replace_file(path: Path, text: str) -> None:
    """Write `path` so that a reader, or a kill, sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        point(f"{path.name}/written")
        os.fsync(file.fileno())
    point(f"{path.name}/synced")
    temporary.replace(path)
    point(f"{path.name}/renamed")
    _sync_folder(path.parent)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, then put it, synced, in the place of `folder`.

    A rename cannot replace a full folder, so for an instant `folder` is absent and its old content
    stands beside it as `.NAME.old`: `recover_folder` brings it back after a kill at that instant.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    old = folder.with_name(f".{folder.name}.old")
    for leftover in (temporary, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
    except BaseException:
        # On a full disk the half that was written is what fills it.
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    point(f"{folder.name}/written")
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(temporary)
    point(f"{folder.name}/synced")
    if folder.exists():
        folder.replace(old)
    point(f"{folder.name}/moved_away")
    temporary.replace(folder)
    point(f"{folder.name}/renamed")
    _sync_folder(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def recover_folder(folder: Path) -> None:
    """Undo a `replace_folder` that was killed between its two renames."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.replace(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
