"""A model folder whose LM head is a tensor of its own, made from one that ties it to the embedding.

vLLM's build for CPU keeps a copy of the LM head in its kernels' layout and, on a reload of weights,
renews only layers that the files name. A tied head is not named: the new body would go on under
the old head, log-probabilities 0.1 nats off, without a word. A server that is started on an untied
folder and given untied folders renews the head too. The cost is one embedding matrix in memory.

    untied/  config.json with tie_word_embeddings false, lm_head.safetensors, the rest as links
"""

import json
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from rnow.errors import ModelError
from rnow.networks.rope import load_network_config
from rnow.runtime.atomic_files import telling_if_full

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_HEAD_FILE = "lm_head.safetensors"
_INDEX = "model.safetensors.index.json"
_CHUNK_BYTES = 16 * 2**20
# Kinds of network in which vLLM has no LM head: it multiplies by the embedding itself, renews it as
# such, and ends where a file names a head.
_HEADLESS = {"gemma2", "gemma3n", "gemma3n_text"}


def is_tied(model: Path) -> bool:
    """Say whether the model's LM head is its embedding.

    Where config.json leaves it out, as Gemma's do, the family's default holds.
    """
    said = _read_json(model / "config.json").get("tie_word_embeddings")
    if said is None:
        said = load_network_config(model, window=None).get_text_config().tie_word_embeddings
    return bool(said)


def needs_untying(model: Path) -> bool:
    """Say whether a server renews all of the model only in untied form."""
    return is_tied(model) and _read_json(model / "config.json").get("model_type") not in _HEADLESS


def untied_folder(model: Path, folder: Path) -> Path:
    """Write the untied form of `model` as `folder`, replacing what is there; return `folder`.

    The two must not be moved apart: weights are links to the files of `model`.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.name not in ("config.json", _INDEX) and file.is_file():
            (folder / file.name).symlink_to(file.resolve())
    config = _read_json(model / "config.json") | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    source = _write_index(model, folder)
    _write_head(source, folder / _HEAD_FILE)
    return folder


def _write_index(model: Path, folder: Path) -> Path:
    """Name the head in the index, if there is one; return the file that holds the embedding."""
    if not (model / _INDEX).exists():
        if not (model / "model.safetensors").exists():
            raise ModelError(f"{model} has no safetensors: its LM head cannot be untied")
        return model / "model.safetensors"
    index = _read_json(model / _INDEX)
    files = index["weight_map"]
    if _EMBEDDING not in files:
        raise ModelError(f"{model / _INDEX} names no {_EMBEDDING}")
    index["weight_map"] = {**files, _HEAD: _HEAD_FILE}
    (folder / _INDEX).write_text(json.dumps(index, indent=2))
    return model / str(files[_EMBEDDING])


def _write_head(source: Path, target: Path) -> None:
    """Copy the embedding's bytes into a safetensors file that holds the head alone.

    By bytes, since numpy knows no bfloat16 and torch is not imported here.
    """
    with open(source, "rb") as weights:
        header_bytes = int.from_bytes(weights.read(8), "little")
        header = json.loads(weights.read(header_bytes))
        if _EMBEDDING not in header:
            raise ModelError(f"{source} holds no {_EMBEDDING}: its LM head cannot be untied")
        start, end = header[_EMBEDDING]["data_offsets"]
        entry = {**header[_EMBEDDING], "data_offsets": [0, end - start]}
        head = json.dumps({"__metadata__": {"format": "pt"}, _HEAD: entry}).encode()
        head += b" " * (-len(head) % 8)
        weights.seek(8 + header_bytes + start)
        with telling_if_full(target, needs_bytes=end - start), target.open("wb") as copy:
            copy.write(len(head).to_bytes(8, "little") + head)
            _copy(weights, copy, end - start)


def _copy(source: BinaryIO, target: BinaryIO, num_bytes: int) -> None:
    while num_bytes:
        chunk = source.read(min(num_bytes, _CHUNK_BYTES))
        if not chunk:
            raise ModelError(f"{source.name} ends before its embedding does")
        target.write(chunk)
        num_bytes -= len(chunk)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    return fields
