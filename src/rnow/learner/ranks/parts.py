"""What a checkpoint holds that several ranks wrote, each its part: sizes, and all put together."""

import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

COUNTS = "counts.safetensors"
MOMENTS = ("exp_avg/", "exp_avg_sq/")  # what the names of AdamW's moments begin with

_WHOLE_OPTIMIZER = "optimizer.safetensors"  # of a checkpoint that is not cut


def load_whole(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights and optimizer of a checkpoint in parts, put together, for one process."""
    reader = HuggingFaceStorageReader(str(folder))
    whole = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries(folder).items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(whole, storage_reader=reader, no_dist=True)
    moments = {name: whole.pop(name) for name in list(whole) if name.startswith(MOMENTS)}
    return whole, {**moments, **counts_of(folder)}


def entries(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Return size and type of each tensor, put together, but for the counts."""
    metadata = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: entry
        for name, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata) and not name.startswith("step/")
    }


def counts_of(folder: Path) -> dict[str, Tensor]:
    if (folder / COUNTS).exists():
        return load_file(folder / COUNTS)
    with safe_open(folder / _WHOLE_OPTIMIZER, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("step/")]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}
