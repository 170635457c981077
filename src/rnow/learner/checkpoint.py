"""Checkpoints that are complete or absent.

A checkpoint is a folder, written beside its final place, synced, and renamed into it:

    checkpoints/000050/   weights.safetensors     what training changes
                          optimizer.safetensors   AdamW's moments
                          state.json              step, policy version, counters; written last

Where weights are cut over several processes, each writes its own part: ranks/checkpoint.py. No
pickle is written or read. `state.json` names the sizes of the other files, so that a folder that
some other program cut short is refused, not loaded.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, get_num_threads

from rnow.errors import CheckpointError
from rnow.runtime.atomic_files import replace_folder
from rnow.runtime.kill_points import point

STATE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a trainer needs to go on as if nothing had happened."""

    step: int  # optimizer steps done; also the policy version of these weights
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    scalars: Mapping[str, Any]  # JSON: schedule, counters


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder`, replacing what was there only once the new one is whole."""

    def write(temporary: Path) -> None:
        save_file(dict(checkpoint.weights), temporary / "weights.safetensors")
        point("checkpoint/weights")
        save_file(dict(checkpoint.optimizer), temporary / "optimizer.safetensors")
        point("checkpoint/optimizer")

    tensors = [*checkpoint.weights.values(), *checkpoint.optimizer.values()]
    save_folder(folder, checkpoint, write, needs_bytes=sum(tensor.nbytes for tensor in tensors))


def save_folder(
    folder: Path, checkpoint: Checkpoint, write: Callable[[Path], None], *, needs_bytes: int
) -> None:
    """Put a folder in place whose tensors `write` writes, and state.json after them."""

    def fill(temporary: Path) -> None:
        write(temporary)
        sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
        state = {"step": checkpoint.step, "scalars": dict(checkpoint.scalars), "sizes": sizes}
        (temporary / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    replace_folder(folder, fill, needs_bytes=needs_bytes)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint back; raises CheckpointError if it is not whole."""
    with telling_if_not_whole(folder):
        state = read_state(folder)
        weights = folder / "weights.safetensors"
        if weights.exists():
            tensors = load_file(weights), load_file(folder / "optimizer.safetensors")
        else:  # several ranks wrote their parts of it
            from rnow.learner.ranks.parts import load_whole

            tensors = load_whole(folder)
    return Checkpoint(
        step=state["step"], weights=tensors[0], optimizer=tensors[1], scalars=state["scalars"]
    )


def read_state(folder: Path) -> dict[str, Any]:
    """Return what state.json says, once every file has the size that it names."""
    state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    for name, size in state["sizes"].items():
        if (folder / name).stat().st_size != size:
            raise CheckpointError(
                f"{folder / name} is cut short; if another checkpoint is left beside it, copy that "
                "there, or begin again with --fresh"
            )
    return state


@contextmanager
def telling_if_not_whole(folder: Path) -> Iterator[None]:
    """Raise CheckpointError where the block finds that `folder` cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{folder} is not a whole checkpoint: {error}; if another one is left beside it, copy "
            "that there, or begin again with --fresh"
        ) from error


def check_student(
    found: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], *, what: str
) -> None:
    """Raise CheckpointError where tensors are not of this student; `what` names them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != expected:
        name = min(dict(shapes.items() ^ expected.items()))
        raise CheckpointError(
            f"the checkpoint{what} is of another student: its {name} is "
            f"{shapes.get(name, 'missing')}, this run's is {expected.get(name, 'missing')}; "
            "start anew with --fresh"
        )


def num_threads() -> int:
    """Return how many threads torch computes with: the order of its sums depends on them."""
    return int(get_num_threads())
