"""Attention for float32 on a GPU: the same numbers as transformers' own, whatever runs it."""

import pytest
import torch
from builders import qwen3

from rnow.learner.attention import ATTENTION_NAME


@pytest.mark.parametrize(
    "positions",
    [
        [[0, 1, 2, 3, 4, 5, 6, 7]],
        [[0, 1, 2, 3, 0, 1, 2, 3]],  # two sequences packed in a row
        [[0, 1, 2, 3, 4, 5, 6, 7]] * 3,
        [[0]],
    ],
)
def test_key_heads_that_are_repeated_attend_as_grouped_ones_do(positions: list[list[int]]) -> None:
    torch.manual_seed(0)
    model = qwen3(vocab_size=64, num_attention_heads=4, num_key_value_heads=2).double()
    position_ids = torch.tensor(positions)
    token_ids = torch.randint(0, 64, position_ids.shape)
    answers = []
    for name in ("sdpa", ATTENTION_NAME):
        model.set_attn_implementation(name)
        hidden = model.model(input_ids=token_ids, position_ids=position_ids, use_cache=False)
        answers.append(hidden.last_hidden_state)
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=1e-12)
