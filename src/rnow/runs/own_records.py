"""The records that a run keeps of itself: one object a file, or one a line."""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rnow.errors import CheckpointError
from rnow.runtime.atomic_files import telling_if_full
from rnow.runtime.kill_points import point


def read_record(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Return what a file holds; raise CheckpointError where that is no object, or no text."""
    return _parsed(str(file), lambda: parse(file.read_text(encoding="utf-8")))


def append_line(file: Path, values: Mapping[str, Any]) -> None:
    line = json.dumps(dict(values)) + "\n"
    with telling_if_full(file, needs_bytes=len(line)), file.open("a", encoding="utf-8") as opened:
        opened.write(line)
        opened.flush()
        point(f"{file.name}/appended")
        os.fsync(opened.fileno())


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file; a kill in mid-write leaves a torn one at its end.

    Raises CheckpointError for a line before it that is no object.
    """
    if not file.exists():
        return []
    lines = enumerate(file.read_bytes().split(b"\n")[:-1], 1)
    return [_parsed(f"{file}:{number}", partial(json.loads, line)) for number, line in lines]


def _parsed(place: str, parse: Callable[[], Any]) -> dict[str, Any]:
    found, cause = None, None
    try:
        found = parse()
    except (OSError, ValueError, yaml.YAMLError) as error:
        cause = error
    if isinstance(found, dict):
        return found
    why = "it holds no object" if cause is None else " ".join(str(cause).split())
    raise CheckpointError(
        f"{place} is a run's own record and cannot be read: {why}; put it back from a copy, or "
        "begin again with --fresh"
    ) from cause
