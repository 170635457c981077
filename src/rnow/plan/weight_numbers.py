"""Weights that are no numbers (NaN, infinity), found in the bytes of a file: without torch, and
of a large model in the beginning of each weight alone.

A float is none where all bits of its exponent are set, whatever its precision.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rnow.errors import ModelError

MAX_BYTES = 64 * 2**20  # of a model: a second of a slow disk, and all of a small one
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


class Held(NamedTuple):
    """A weight in a file, as the header of safetensors describes it."""

    precision: str
    shape: tuple[int, ...]
    start: int  # bytes of the file
    end: int


def check_numbers(
    folder: Path, files: Mapping[Path, Mapping[str, Held]], *, max_bytes: int = MAX_BYTES
) -> str | None:
    """Raise ModelError for weights that are no numbers, in as much of the files as is read.

    `files`: what each file of the model in `folder` holds. Returns what was not looked at, None
    where all was.
    """
    held = {
        name: (file, one)
        for file, weights in files.items()
        for name, one in weights.items()
        if one.precision in _EXPONENTS and "mask" not in name  # of attention, with its -inf
    }
    num_bytes = sum(one.end - one.start for _, one in held.values())
    is_large = num_bytes > max_bytes
    share = max_bytes // len(held) // 8 * 8 if is_large else num_bytes
    bad = [name for name, (file, one) in held.items() if _is_bad(file, one, share)]
    if bad:
        raise ModelError(
            f"{folder}: {len(bad)} of {len(held)} weights hold NaN or infinity, the first "
            f"{bad[0]}; a network with them gives no probabilities: take weights of before that, "
            "or fetch the model again"
        )
    if not is_large:
        return None
    return (
        f"{folder}: the first {share / 2**10:,.0f} kB of each of {len(held)} weights were looked "
        f"at for NaN and infinity, of {num_bytes / 2**30:.1f} GB; the rest is seen when it is used"
    )


def _is_bad(file: Path, held: Held, max_bytes: int) -> bool:
    kind, exponent = _EXPONENTS[held.precision]
    size = min(max_bytes, held.end - held.start)
    with file.open("rb") as opened:
        opened.seek(held.start)
        bits = np.frombuffer(opened.read(size), kind)
    return bool(((bits & exponent) == exponent).any())
