"""A checkpoint of weights that are cut over the ranks: each writes and reads its own part.

    checkpoints/latest/   shard-00001-….safetensors   one a rank: its part of weights and moments
                          counts.safetensors          AdamW's own counts, which are not cut
                          state.json                  as in any other; written last, by rank 0

torch.distributed.checkpoint in its safetensors form, so that no pickle is written here either: a
part says where in the whole it lies. Any number of ranks, one process too, reads what any other
number wrote, and the two files of a checkpoint that is not cut.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from rnow.learner.checkpoint import (
    Checkpoint,
    check_student,
    read_state,
    save_folder,
    telling_if_not_whole,
)
from rnow.learner.ranks.group import Ranks
from rnow.learner.ranks.parts import COUNTS, MOMENTS, counts_of, entries
from rnow.runtime.kill_points import point


def save_parts(folder: Path, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Write `folder` together, complete or absent, as `save_checkpoint` does alone."""
    cut, counts = _split(checkpoint.optimizer)
    state = {**checkpoint.weights, **cut}

    def write(into: Path) -> None:
        ranks.wait_for_all()  # the folder is there
        writer = HuggingFaceStorageWriter(str(into), save_distributed=True)
        save(state, storage_writer=writer, process_group=ranks.group)
        point("checkpoint/parts")

    def write_first(into: Path) -> None:
        write(into)
        save_file(counts, into / COUNTS)

    if ranks.rank == 0:
        size = sum(tensor.nbytes for tensor in state.values())
        save_folder(folder, checkpoint, write_first, needs_bytes=size)
    else:
        write(folder.with_name(f".{folder.name}.tmp"))  # where atomic_files fills it
    ranks.wait_for_all()  # it is in its place


def load_parts(folder: Path, weights: Mapping[str, Tensor], ranks: Ranks) -> Checkpoint:
    """Read a checkpoint of either form into tensors that are cut as `weights` are.

    Raises CheckpointError where it is not whole, or of another student.
    """
    with telling_if_not_whole(folder):
        state = read_state(folder)
        found, counts = entries(folder), counts_of(folder)
        names = dict.fromkeys(weights, "")
        kinds = ("", *MOMENTS) if counts else ("",)  # before the first update there are no moments
        check_student(
            {name: torch.empty(entry.size, device="meta") for name, entry in found.items()},
            {kind + name: tuple(weights[name].shape) for kind in kinds for name in names},
            what="",
        )
        cut = {kind + name: torch.empty_like(weights[name]) for kind in kinds for name in names}
        reader = HuggingFaceStorageReader(str(folder))
        load(cut, storage_reader=reader, process_group=ranks.group)
    return Checkpoint(
        step=state["step"],
        weights={name: cut.pop(name) for name in names},
        optimizer={**cut, **counts},
        scalars=state["scalars"],
    )


def _split(optimizer: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors that are cut as the weights are, and the counts."""
    cut = {name: value for name, value in optimizer.items() if name.startswith(MOMENTS)}
    return cut, {name: value for name, value in optimizer.items() if name not in cut}
