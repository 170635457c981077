"""Writes that are either done or not: temp file, fsync, rename.

A disk that is full leaves the old content as it was, and is told with what was being written.
"""

import errno
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import ceil, floor
from pathlib import Path
from typing import NoReturn

from rnow.errors import SpaceError
from rnow.runtime.kill_points import point

_FULL = (errno.ENOSPC, errno.EDQUOT)


def replace_file(path: Path, text: str) -> None:
    """Write `path` so that a reader, or a kill, sees the old text or the new, never a part."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """As `replace_file`."""
    temporary = path.with_name(f".{path.name}.tmp")
    with telling_if_full(path, needs_bytes=len(content)):
        _write_synced(temporary, content, name=path.name)
    point(f"{path.name}/synced")
    temporary.replace(path)
    point(f"{path.name}/renamed")
    _sync_folder(path.parent)


@contextmanager
def telling_if_full(path: Path, *, needs_bytes: int) -> Iterator[None]:
    """Raise SpaceError if the block finds the disk full: `path` was being written."""
    try:
        yield
    except Exception as error:
        if errno_of(error) in _FULL:
            _tell(path, needs_bytes, error)
        raise


@contextmanager
def filling(folder: Path, *, needs_bytes: int = 0) -> Iterator[None]:
    """Remove `folder` if the block fails to fill it; raise SpaceError if that is for a full disk.

    What was written by then is needed at least.
    """
    try:
        yield
    except BaseException as error:
        needed = max(needs_bytes, folder_bytes(folder))
        # On a full disk the half that was written is what fills it.
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, Exception) and errno_of(error) in _FULL:
            _tell(folder, needed, error)
        raise


def _tell(path: Path, needs_bytes: int, error: Exception) -> NoReturn:
    path = path.with_name(re.sub(r"^\.(.+)\.tmp$", r"\1", path.name))  # as the user will know it
    needed = ceil(needs_bytes / 1e5) / 10
    there = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = floor(shutil.disk_usage(there).free / 1e5) / 10
    raise SpaceError(
        f"the disk is full: {path} was being written, which needs {needed} MB; {free} MB are "
        "free. What was there before is as it was. Free some space; a run goes on with the "
        "same command"
    ) from error


def errno_of(error: Exception) -> int:
    """Return the number of the system's error that this one is, or tells of; 0 where it is none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    # safetensors tells of them in Rust's words, shutil of several at once.
    found = re.search(r"(?:\(os error |\[Errno )(\d+)", str(error))
    return int(found[1]) if found else 0


def _write_synced(temporary: Path, content: bytes, *, name: str) -> None:
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            point(f"{name}/written")
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_folder(folder: Path, write: Callable[[Path], None], *, needs_bytes: int = 0) -> None:
    """Let `write` fill a new folder, then put it, synced, in the place of `folder`.

    `needs_bytes` is what is known of its size, for the message if the disk is full.

    A rename cannot replace a full folder, so for an instant `folder` is absent and its old content
    stands beside it as `.NAME.old`: `recover_folder` brings it back after a kill at that instant.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    old = folder.with_name(f".{folder.name}.old")
    for leftover in (temporary, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    # What it replaces says how much it takes, where nobody knows better.
    with filling(temporary, needs_bytes=max(folder_bytes(folder), needs_bytes)):
        temporary.mkdir(parents=True)
        _fill_synced(temporary, write, name=folder.name)
    point(f"{folder.name}/synced")
    if folder.exists():
        folder.replace(old)
    point(f"{folder.name}/moved_away")
    temporary.replace(folder)
    point(f"{folder.name}/renamed")
    _sync_folder(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def _fill_synced(temporary: Path, write: Callable[[Path], None], *, name: str) -> None:
    write(temporary)
    point(f"{name}/written")
    give_umask_modes(temporary)
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(temporary)


def give_umask_modes(folder: Path) -> None:
    """Let others read the files of a new folder as far as they may read the folder itself.

    safetensors and tempfile make files for this user alone, whatever the umask: a server that runs
    as another user could not load them.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def recover_folder(folder: Path) -> None:
    """Undo a `replace_folder` that was killed between its two renames."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.replace(folder)


def folder_bytes(folder: Path) -> int:
    """Return how much the files of `folder` take, but for those that go meanwhile.

    What a link leads to is another's.
    """
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = os.lstat(os.path.join(place, name))
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
