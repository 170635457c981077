"""Positions that would change with the batch: fixed by the window, in trainer and engine alike."""

from pathlib import Path

import pytest
import torch
from builders import load_policy
from families import tiny_model

from rnow.engines.base import ScoreRequest
from rnow.engines.local.engine import LocalEngine
from rnow.errors import ModelError

TRAINED = 16
SHORT = torch.randint(3, 128, (1, 12), generator=torch.Generator().manual_seed(0))
LONG = torch.randint(3, 128, (1, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phi")
    parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 5.0, 6.0, 7.0],
        "original_max_position_embeddings": TRAINED,
    }
    model = tiny_model("phi3", rope_parameters=parameters, original_max_position_embeddings=TRAINED)
    model.save_pretrained(folder)
    return folder


def logprobs(folder: Path, rows: torch.Tensor, *, window: int | None) -> torch.Tensor:
    """Of tokens 1 to 11 of the first row."""
    policy = load_policy(folder, tuning="full", dtype="float32", window=window)
    positions = torch.arange(rows.shape[1]).expand_as(rows)
    with torch.no_grad():
        return policy.action_logprobs(
            rows, position_ids=positions, action_index=torch.arange(1, 12)
        )


def beside_a_long_row() -> torch.Tensor:
    return torch.cat([torch.nn.functional.pad(SHORT, (0, 28)), LONG])


def test_a_row_has_the_same_numbers_beside_a_longer_one(phi: Path) -> None:
    left_alone = logprobs(phi, SHORT, window=None) - logprobs(phi, beside_a_long_row(), window=None)
    assert left_alone.abs().max() > 0.1  # what happens where nobody fixes it
    alone = logprobs(phi, SHORT, window=40)
    torch.testing.assert_close(logprobs(phi, beside_a_long_row(), window=40), alone)


@pytest.mark.parametrize("window", [TRAINED, 40])
async def test_the_engine_has_the_trainers_positions(phi: Path, window: int) -> None:
    engine = LocalEngine(phi, dtype="float32", window=window, request_timeout_s=600)
    scores = await engine.score(ScoreRequest(token_ids=tuple(SHORT[0].tolist()), start=1))
    await engine.aclose()
    expected = logprobs(phi, SHORT, window=window)
    torch.testing.assert_close(torch.from_numpy(scores.logprobs), expected, rtol=0, atol=1e-5)


def test_the_window_chooses_the_factors(phi: Path) -> None:
    difference = logprobs(phi, SHORT, window=TRAINED) - logprobs(phi, SHORT, window=TRAINED + 1)
    assert difference.abs().max() > 0.1


def test_positions_that_engines_read_differently_are_refused(tmp_path: Path) -> None:
    parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    tiny_model("llama", rope_parameters=parameters).save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_policy(tmp_path, window=64)
    assert str(caught.value) == (
        f"{tmp_path}: its rotary positions are of type dynamic, which change with the length of a "
        "text in one engine and not in another; take another model"
    )
