"""One token from a row of logits.

Every row is computed by itself, from its own logits and its own uniform number, so a draw never
depends on the batch. The inverse of the distribution function in float64: the token's probability
is right to the last places even for a vocabulary of 150,000. What a model's generation_config says
(top-k, top-p, penalties) has no say here: the teacher is asked at temperature 1, and sampling
otherwise would mix two distributions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def uniform_stream(seed: int) -> np.random.Generator:
    """Return the uniform numbers of one request, one a token: counter-based, keyed by `seed`."""
    return np.random.Generator(np.random.Philox(key=seed % 2**128))


def draw_tokens(
    logits: Tensor,  # [rows, vocabulary]
    *,
    uniforms: Sequence[float],  # [rows] in [0, 1)
    temperatures: Sequence[float],  # [rows]; 0 takes the likeliest token
) -> tuple[list[int], list[float]]:
    """Return a token for each row and its log-probability at temperature 1, in nats, from fp32."""
    logits = logits.float()
    if any(temperatures):
        warmth = torch.tensor(
            [value or 1.0 for value in temperatures], dtype=torch.float64, device=logits.device
        )
        chance = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
        cumulated = torch.softmax(logits.double() / warmth[:, None], dim=-1).cumsum(-1)
        # The first token whose cumulated probability exceeds the number: one of probability 0 never
        # does.
        wanted = chance[:, None] * cumulated[:, -1:]
        tokens = torch.searchsorted(cumulated, wanted, right=True)[:, 0]
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
    if not all(temperatures):
        likeliest = logits.argmax(-1)
        if any(temperatures):
            warm = torch.tensor([value > 0 for value in temperatures], device=logits.device)
            likeliest = torch.where(warm, tokens, likeliest)
        tokens = likeliest
    logprobs = torch.log_softmax(logits, dim=-1).gather(-1, tokens[:, None])[:, 0]
    return tokens.tolist(), logprobs.tolist()
