"""What is known of a step's rollouts beside their journal: lines of JSON, written once, compressed.

    trajectories/update-000042.jsonl.zst       the trainer's own log-probabilities, as it updated
                 favourites-000042.jsonl.zst   what the teacher likes best, of a few rollouts
                 eval-000042.jsonl.zst         held-out answers after 42 updates, with their grades

Nothing is trained on it: a report reads it, and a run goes on where it is missing.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import zstandard

from rnow.runtime.atomic_files import replace_bytes

Kind = Literal["update", "favourites", "eval"]


def beside(trajectories: Path, kind: Kind, step: int) -> Path:
    return trajectories / f"{kind}-{step:06d}.jsonl.zst"


def write_beside(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_bytes(path, zstandard.ZstdCompressor().compress(text.encode()))


def read_beside(path: Path) -> list[dict[str, Any]]:
    """Return the lines; none where there is no such file, or only a part of one."""
    try:
        text = zstandard.ZstdDecompressor().decompress(path.read_bytes()).decode()
        return [json.loads(line) for line in text.split("\n") if line]
    except (OSError, ValueError, zstandard.ZstdError):
        return []


def forget_beside(trajectories: Path, *, since: int) -> None:
    """Remove what belongs to step `since` and later: a step taken up again makes it anew."""
    for path in trajectories.glob("[a-z]*-[0-9]*.jsonl.zst"):
        if int(path.name.partition(".")[0].rpartition("-")[2]) >= since:
            path.unlink()
