"""The weight files of a model folder: which there are, how large, and whether they can be loaded.

A header says what a file holds, so a cut download, a pointer that a version-control system left in
a file's place, a missing part or a strange precision is seen there; what the weights themselves are
weight_numbers.py looks at.
"""

import importlib.util
import json
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rnow.errors import ModelError
from rnow.plan.weight_numbers import Held, check_numbers

# The first line of what Git LFS, git-annex or Xet leave in a file's place.
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"/annex/objects/", b"# xet version")
_LONGEST_POINTER = 1024
# What transformers needs to load weights that are quantized so, as Python imports it; vLLM has its
# own kernels for all but the first.
_PACKAGES = {
    "bitsandbytes": "bitsandbytes",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed_tensors",
    "torchao": "torchao",
    "hqq": "hqq",
    "quanto": "optimum.quanto",
    "mxfp4": "kernels",
}
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_LAST_NORM = re.compile(r"(?:^|\.)model\.norm\.weight$")
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def count_weight_bytes(folder: Path) -> int | None:
    """Return the bytes of the weight files in `folder`, or None if one is missing."""
    try:
        return sum(file.stat().st_size for file in _weight_files(folder)) or None
    except (OSError, ModelError):
        return None


def index_bytes(folder: Path) -> int | None:
    """Return the bytes of all weights as their index says, fetched or not; None: there is none."""
    try:
        index = _read_json(folder / "model.safetensors.index.json")
        return int(index["metadata"]["total_size"])
    except (ModelError, KeyError, TypeError, ValueError):
        return None


class Weights(NamedTuple):
    """What was seen of a model's weights without loading them."""

    notices: tuple[str, ...] = ()  # one line each, for the user
    unseen: str | None = None  # a line of what was not looked at
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})  # {}: the files do not say it


def check_weights(folder: Path) -> Weights:
    """Open every header in `folder`; ModelError names the file that cannot be loaded, and why.

    A notice is of another precision than config.json says. Of a pickle no more is looked at than
    that it is whole.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter beside its weights or instead of them; merge the two "
            "(rnow export RUN --merge, or peft's merge_and_unload) and name what comes out"
        )
    for file in [*sorted(folder.glob("*.json")), *sorted(folder.glob("*.model"))]:
        _refuse_pointer(file)
    files = _weight_files(folder)
    if not files:
        raise ModelError(f"{folder} has no weights (*.safetensors or pytorch_model*.bin)")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {_listed(missing)}, which its index names; fetch the model again"
        )
    held: dict[Path, dict[str, Held]] = {}
    for file, names in files.items():
        _refuse_pointer(file)
        if file.suffix == ".safetensors":
            held[file] = _read_header(file)
            if lacking := sorted(names - set(held[file])):
                raise ModelError(
                    f"{file} lacks {_listed(lacking)}, which the index says are in it; "
                    "fetch the model again"
                )
        elif not zipfile.is_zipfile(file):
            raise ModelError(f"{file} is cut off, or in a form of before torch 1.6; fetch it again")
    weights = {name: one for part in held.values() for name, one in part.items()}
    _check_sizes(folder, weights)
    told = _check_precision(folder, Counter(one.precision for one in weights.values()))
    unseen = check_numbers(folder, held)
    if pickles := [file.name for file in files if file not in held]:
        unseen = (
            f"{folder}: {_listed(pickles)} {'is' if len(pickles) == 1 else 'are'} whole, and what "
            "weights a pickle holds is seen when it is loaded, not before"
        )
    return Weights(told, unseen, {name: one.shape for name, one in weights.items()})


def linear_names(folder: Path) -> frozenset[str]:
    """Return how the names of matrices end, "q_proj", without embeddings and LM head; empty: the
    files do not say it."""
    files = _weight_files(folder)
    if any(file.suffix != ".safetensors" for file in files):
        return frozenset()
    held = {name: one for file in files for name, one in _read_header(file).items()}
    matrices = [name for name, one in held.items() if len(one.shape) > 1]
    modules = {name.removesuffix(".weight").rpartition(".")[2] for name in matrices}
    return frozenset(modules - {"embed_tokens", "lm_head"})


def check_quantization(folder: Path, *, is_trained: bool, is_served: bool) -> bool:
    """Say whether weights are quantized; raise ModelError where their role cannot have them so.

    `is_trained`: the student's. `is_served`: vLLM alone loads them.
    """
    quantized = _read_json(folder / "config.json").get("quantization_config") or {}
    method = quantized.get("quant_method")
    if method is not None and is_trained:
        raise ModelError(
            f"{folder} has weights quantized by {method}, and a student is trained from weights "
            "that are not; take the model that it was made from"
        )
    package = None if method is None else _PACKAGES.get(method)
    if package is None or (is_served and method != "bitsandbytes"):
        return method is not None
    if importlib.util.find_spec(package.partition(".")[0]) is None:
        raise ModelError(
            f"{folder} has weights quantized by {method}, and the package {package} that reads "
            f"them is not installed here: pip install {package.replace('_', '-')}, or take the "
            "model that is not quantized"
        )
    return True


def _weight_files(folder: Path) -> dict[Path, set[str]]:
    """Return the files of weights, there or not, and the weights that an index says are in each."""
    for kind in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{kind}.index.json"
        if not index.is_file():
            continue
        places = _read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise ModelError(f"{index} has no weight_map; fetch the model again")
        files: dict[Path, set[str]] = {}
        for name, file in sorted(places.items(), key=itemgetter(1)):
            files.setdefault(folder / file, set()).add(name)
        return files
    found = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    return {file: set() for file in found}


def _read_header(file: Path) -> dict[str, Held]:
    """Return what each weight of a file is. That the file is whole safetensors sees."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"), file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is cut off or damaged ({error}); fetch it again") from error
    header.pop("__metadata__", None)
    return {
        name: Held(
            one["dtype"], tuple(one["shape"]), *(8 + size + place for place in one["data_offsets"])
        )
        for name, one in header.items()
    }


def _check_sizes(folder: Path, weights: Mapping[str, Held]) -> None:
    """Refuse a config.json of a larger network than the files hold, by what all families name so.

    transformers would fill what is missing with random numbers, or end in a long list of shapes.
    """
    config = _read_json(folder / "config.json")
    config = config.get("text_config") or config
    layers = [int(found[1]) for name in weights if (found := _LAYER.search(name))]
    rows = [held.shape[0] for name, held in weights.items() if name.endswith("embed_tokens.weight")]
    widths = [held.shape[0] for name, held in weights.items() if _LAST_NORM.search(name)]
    sizes = {
        "num_hidden_layers": 1 + max(layers) if layers else None,
        "vocab_size": max(rows, default=None),
        "hidden_size": max(widths, default=None),
    }
    for key, held in sizes.items():
        said = config.get(key)
        if held is not None and isinstance(said, int) and said > held:
            raise ModelError(
                f"{folder}: config.json says {key} {said}, and the weights are those of {held}; "
                "take both from the same model"
            )


def _check_precision(folder: Path, held: Counter[str]) -> tuple[str, ...]:
    """Refuse whole numbers without a word of quantization: they would be taken for weights."""
    config = _read_json(folder / "config.json")
    if config.get("quantization_config") or not held:
        return ()
    if narrow := sorted(set(held) - set(_FLOATS)):
        raise ModelError(
            f"{folder} has weights in {_listed(narrow)}, and its config.json has no "
            "quantization_config that says how they are meant; take the model's own files"
        )
    said = config.get("dtype") or config.get("torch_dtype")
    most = _FLOATS[held.most_common(1)[0][0]]
    if said is None or said == most:
        return ()
    return (
        f"{folder}: config.json says {said}, and the weights are in {most}. They are loaded in "
        "model.dtype, whatever either says",
    )


def _refuse_pointer(file: Path) -> None:
    try:
        if file.stat().st_size > _LONGEST_POINTER:
            return
        begin = file.read_bytes()
    except OSError:
        return
    if any(mark in begin[:200] for mark in _POINTERS):
        raise ModelError(
            f"{file} is the pointer that version control left in the file's place, not the file: "
            f"git lfs pull in {file.parent}, or fetch it again"
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}); fetch it again") from error
    return read if isinstance(read, dict) else {}


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
