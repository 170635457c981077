"""Every family that people train: the trainer's numbers are the model's own."""

from pathlib import Path

import pytest
import torch
from builders import load_policy
from families import FAMILIES, tiny_model

IDS = torch.randint(0, 128, (2, 40), generator=torch.Generator().manual_seed(0))
ACTIONS = torch.tensor([3, 17, 39, 45, 79])


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradient_are_those_of_the_model_itself(
    family: str, tmp_path: Path
) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    # Several families make their norms and softmax in float32, whatever the weights are in.
    # Experts' grouped products are not there in float64.
    is_wide = family not in ("qwen3-moe", "gpt-oss")
    dtype, close = ("float64", 3e-6) if is_wide else ("float32", 3e-5)
    model = model.double() if is_wide else model
    model.set_attn_implementation("eager")
    policy = load_policy(tmp_path, tuning="full", dtype=dtype, chunk_tokens=2)
    positions = torch.arange(40).expand(2, 40)
    mine = policy.action_logprobs(IDS, position_ids=positions, action_index=ACTIONS)
    logits = model(input_ids=IDS, position_ids=positions, use_cache=False).logits
    following = logits.log_softmax(-1).flatten(0, 1)[ACTIONS - 1]
    expected = following.gather(1, IDS.flatten()[ACTIONS, None])[:, 0]
    torch.testing.assert_close(mine, expected, rtol=0, atol=close)
    mine.square().sum().backward()
    expected.square().sum().backward()
    theirs = dict(model.named_parameters())
    for name, parameter in policy.trained_parameters().items():
        wanted, found = theirs[name].grad, parameter.grad
        assert (wanted is None) == (found is None), name
        if wanted is not None:
            assert found is not None
            assert (found - wanted).norm() <= 10 * close * (1 + wanted.norm()), name
