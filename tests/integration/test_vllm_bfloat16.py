"""In bfloat16 engines agree as a mean: before and after adapters, and after a whole model."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import torch
from builders import load_policy
from vllm_pair import MEAN_TOLERANCE, Pair, make_ids, open_pair, save_adapter, save_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    async with open_pair(tmp_path_factory.mktemp("bfloat16"), dtype="bfloat16") as opened:
        yield opened


async def test_the_trainer_agrees_with_what_was_sampled(pair: Pair) -> None:
    """Logits are in float32 on both sides, whatever precision the layers have."""
    policy = load_policy(pair.model, dtype="bfloat16")
    differences = []
    for num in range(60, 68):
        ids = make_ids(num)
        completion = await pair.sample(ids, version=0)
        both = torch.tensor([[*ids, *completion.token_ids.tolist()]])
        with torch.no_grad():
            logprobs = policy.action_logprobs(
                both,
                position_ids=torch.arange(both.shape[1])[None],
                action_index=torch.arange(len(ids), both.shape[1]),
            )
        differences.append(np.abs(logprobs.float().numpy() - completion.logprobs).mean())
    assert 1e-6 < np.mean(differences) < MEAN_TOLERANCE


async def test_scores_and_samples_agree_through_four_publications(
    pair: Pair, tmp_path: Path
) -> None:
    differences = {0: await pair.mean_differences(0)}
    for version in (1, 2, 3):
        folder = save_adapter(pair.model, tmp_path / str(version), seed=version)
        await pair.load(folder, version)
        differences[version] = await pair.mean_differences(version)
    await pair.load(save_model(pair.model, tmp_path / "4", seed=4), 4)
    differences[4] = await pair.mean_differences(4)
    assert all(max(both) < MEAN_TOLERANCE for both in differences.values()), differences
    # Apart they are: an engine that is compared with itself would pass the test above.
    assert min(map(max, differences.values())) > 1e-6, differences
