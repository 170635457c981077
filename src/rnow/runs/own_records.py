"""The records that a run keeps of itself: one object a file, or one a line."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from rnow.errors import CheckpointError
from rnow.runtime.atomic_files import telling_if_full
from rnow.runtime.kill_points import point


def read_record(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Return what a file holds; raise CheckpointError where that is no object, or no text."""
    try:
        found = parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _damaged(str(file), error) from error
    if not isinstance(found, dict):
        raise _damaged(str(file), "it holds no object")
    return found


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
    found = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise _damaged(f"{file}:{number}", error) from error
        if not isinstance(found[-1], dict):
            raise _damaged(f"{file}:{number}", "it holds no object")
    return found


def _damaged(place: str, why: object) -> CheckpointError:
    return CheckpointError(
        f"{place} is a run's own record and cannot be read: {' '.join(str(why).split())}; put it "
        "back from a copy, or begin again with --fresh"
    )
