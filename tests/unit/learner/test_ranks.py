"""An update by several ranks is the update by one: gradients, totals, checkpoints, weights."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rank_cases
import torch
from builders import qwen3
from rank_cases import CASES, CHECKPOINTS, Case
from safetensors.torch import load_file
from torch import Tensor

from rnow.errors import CheckpointError
from rnow.learner.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow

KINDS = sorted({case.name.rpartition("-")[0] for case in CASES})


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that three processes found, started once for all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    environ = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, ROOT / "tests" / "rank_cases.py", folder]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def alone(found: Path) -> dict[tuple[str, bool, str], dict[str, Tensor]]:
    """The same batch through one process, by (tuning, tied, dtype)."""
    kinds = {(case.tuning, case.is_tied, case.dtype) for case in CASES}
    return {
        kind: rank_cases.gradient(
            rank_cases.load(found, kind[0], is_tied=kind[1], dtype=kind[2], ranks=None),
            None,
            max_tokens=60,
        )
        for kind in kinds
    }


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


# The gradient


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_several_ranks_is_that_of_one(
    found: Path, alone: dict[Any, dict[str, Tensor]], kind: str
) -> None:
    cases = [case for case in CASES if case.name.startswith(f"{kind}-")]
    assert len(cases) == len(rank_cases.CUTS)
    for case in cases:
        reference = alone[case.tuning, case.is_tied, case.dtype]
        theirs = torch.load(found / f"{case.name}.pt")
        bound = 1e-12 if case.dtype == "float64" else 1e-5
        assert theirs["gradient"].shape == reference["gradient"].shape
        assert reference["gradient"].norm() > 0.01
        assert distance(theirs["gradient"], reference["gradient"]) <= bound, case.name
        for name in ("loss", "reverse_kl", "max_advantage", "turn_reverse_kl"):
            assert torch.allclose(theirs[name], reference[name], rtol=10 * bound), name
        assert theirs["turn_actions"].tolist() == reference["turn_actions"].tolist()


# Ranks that are not alike


def test_ranks_with_different_weights_all_say_which_and_end_with_4(found: Path) -> None:
    told = [(found / f"differing-{rank}.txt").read_text().split("\n") for rank in range(3)]
    assert told[0] == told[1] == told[2]
    name, message = told[0]
    assert message == (
        f"the 3 ranks of the trainer hold different weights after step 5: {name} (1 of 28 in "
        "all). What they computed since the last checkpoint is not to be trusted and is not kept. "
        "Check the GPUs (nvidia-smi -q -d ECC); the same command goes on from the checkpoint"
    )


# Checkpoints


@pytest.fixture(scope="module")
def kept(found: Path) -> dict[str, Any]:
    return dict(torch.load(found / "checkpoints.pt", weights_only=False))


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("writer", CHECKPOINTS)
@pytest.mark.parametrize("reader", CHECKPOINTS)
def test_a_checkpoint_is_read_by_any_number_of_ranks_bit_for_bit(
    kept: dict[str, Any], writer: str, reader: str
) -> None:
    assert len(kept[f"{writer} writes"]) == 4 * len(qwen3().state_dict()) - 4  # a tied head
    assert same_bits(kept[f"{writer} to {reader} read"], kept[f"{writer} writes"])


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_step_after_a_checkpoint_is_near_to_the_same_on_every_number_of_ranks(
    kept: dict[str, Any], kind: str
) -> None:
    reference = kept["alone to alone stepped"]
    stepped = kept[f"{kind} to {kind} stepped"]
    for name, tensor in reference.items():
        assert distance(stepped[name], tensor) <= 1e-5, name
    assert not same_bits(reference, kept["alone writes"])


def test_a_checkpoint_in_parts_has_no_pickle_and_is_refused_when_a_part_is_cut_short(
    found: Path,
) -> None:
    folder = found / "checkpoint 3 sharded"
    parts = [f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2, 3)]
    assert sorted(path.name for path in folder.iterdir()) == [
        "counts.safetensors",
        *parts,
        "state.json",
    ]
    whole = sum((folder / part).stat().st_size for part in parts)
    assert max((folder / part).stat().st_size for part in parts) < 0.4 * whole
    part = folder / parts[1]
    content = part.read_bytes()
    part.write_bytes(content[:-10])
    try:
        with pytest.raises(CheckpointError) as refused:
            load_checkpoint(folder)
    finally:
        part.write_bytes(content)
    assert str(refused.value) == (
        f"{part} is cut short; if another checkpoint is left beside it, copy that there, "
        "or begin again with --fresh"
    )


@pytest.mark.parametrize("kind", [kind for kind in CHECKPOINTS if kind != "alone"])
def test_what_is_published_and_probed_is_that_of_the_whole(
    found: Path, kept: dict[str, Any], kind: str
) -> None:
    published = load_file(found / f"published {kind}" / "model.safetensors")
    weights = kept[f"{kind} writes"]
    assert published.keys() < weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in published.items())
    files = [
        sorted(path.name for path in (found / f"published {one}").iterdir())
        for one in (kind, "alone")
    ]
    assert files[0] == files[1]
    difference = abs(kept[f"{kind} probes"] - kept["alone probes"]).max()
    assert difference <= 1e-4


def test_names_of_cases_are_all_different() -> None:
    assert len({case.name for case in CASES}) == len(CASES) == 96
    assert isinstance(CASES[0], Case)
