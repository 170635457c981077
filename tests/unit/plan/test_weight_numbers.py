import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rnow.errors import ModelError
from rnow.plan.weight_files import check_weights
from rnow.plan.weight_numbers import Held, check_numbers

PRECISIONS = ("float64", "float32", "float16", "bfloat16")


def write_model(folder: Path, precision: str, *, bad: float | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"dtype": precision}))
    dtype = getattr(torch, precision)
    info = torch.finfo(dtype)
    # Zero and the numbers nearest to what is none.
    good = torch.tensor([0.0, info.max, info.min, info.tiny, -1.0], dtype=dtype)
    last = good.clone()
    if bad is not None:
        last[3] = bad
    save_file({"a": good, "b": last}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_weight_that_is_no_number_is_refused(tmp_path: Path, precision: str) -> None:
    assert check_weights(write_model(tmp_path / "good", precision)).notices == ()
    for bad in (np.nan, np.inf, -np.inf):
        folder = write_model(tmp_path / str(bad), precision, bad=float(bad))
        with pytest.raises(ModelError) as caught:
            check_weights(folder)
        assert str(caught.value) == (
            f"{folder}: 1 of 2 weights hold NaN or infinity, the first b; a network with them "
            "gives no probabilities: take weights of before that, or fetch the model again"
        )


def test_an_attentions_mask_may_be_infinite_and_whole_numbers_are_not_looked_at(
    tmp_path: Path,
) -> None:
    weights = {"h.0.attn.mask": torch.full((4,), -torch.inf), "b": torch.full((4,), -1)}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"bits": 8}}))
    assert check_weights(tmp_path).notices == ()


def test_of_a_large_model_the_beginning_of_each_weight_is_read(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    numbers = np.zeros(2000, np.float32)
    numbers[1900] = np.nan
    file.write_bytes(numbers.tobytes())
    held = {"a": Held("F32", (1000,), 0, 4000), "b": Held("F32", (1000,), 4000, 8000)}
    assert check_numbers(tmp_path, {file: held}, max_bytes=2063) == (
        f"{tmp_path}: the first 1 kB of each of 2 weights were looked at for NaN and infinity, of "
        "0.0 GB; the rest is seen when it is used"
    )
    with pytest.raises(ModelError, match=r": 1 of 2 weights hold NaN or infinity, the first b; "):
        check_numbers(tmp_path, {file: held}, max_bytes=8000)
    numbers[1100] = np.inf
    file.write_bytes(numbers.tobytes())
    with pytest.raises(ModelError, match=r": 1 of 2 weights hold NaN or infinity, the first b; "):
        check_numbers(tmp_path, {file: held}, max_bytes=1003)
