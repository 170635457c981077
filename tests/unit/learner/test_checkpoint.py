from pathlib import Path

import pytest
import torch

from rnow.errors import CheckpointError
from rnow.learner.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def make_checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(
        step=step,
        weights={"layer.lora_A": torch.randn(3, 2, generator=generator)},
        optimizer={
            "exp_avg/layer.lora_A": torch.randn(3, 2, generator=generator),
            "step/layer.lora_A": torch.tensor(float(step)),
        },
        scalars={"trainer": {"num_bad_updates": 1}},
    )


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    saved = make_checkpoint(7)
    save_checkpoint(tmp_path / "latest", saved)
    loaded = load_checkpoint(tmp_path / "latest")
    assert (loaded.step, loaded.scalars) == (7, saved.scalars)
    for one, other in ((loaded.weights, saved.weights), (loaded.optimizer, saved.optimizer)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_second_checkpoint_takes_the_place_of_the_first(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path / "latest", make_checkpoint(step))
    assert load_checkpoint(tmp_path / "latest").step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]
    # No pickle is written, so none is ever loaded.
    assert sorted(path.name for path in (tmp_path / "latest").iterdir()) == [
        "optimizer.safetensors",
        "state.json",
        "weights.safetensors",
    ]


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "latest", make_checkpoint(1))
    file = tmp_path / "latest" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "latest")
    assert str(caught.value) == (
        f"{file} is cut short; if another checkpoint is left beside it, copy that there, or begin "
        "again with --fresh"
    )


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors"])
def test_a_folder_that_lacks_a_file_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path / "latest", make_checkpoint(1))
    (tmp_path / "latest" / name).unlink()
    with pytest.raises(CheckpointError, match="latest is not a whole checkpoint"):
        load_checkpoint(tmp_path / "latest")
