"""The student's network as one module, from token ids to the log-probabilities of actions.

    token ids ──body──▶ hidden states ──those that predict an action token──▶ LM head ──▶ logprobs
    [rows, width]       [rows, width, …]                     [actions, …]     in chunks   [actions]

Whoever wants those numbers calls the whole: then whatever is done to a module as it is called (to
gather the weights that other processes hold) is done to all of it, the LM head too.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from rnow.learner.attention import positions_of_row
from rnow.learner.lm_head import LogitMap, default_chunk_tokens, token_logprobs
from rnow.networks.last_layer import only_rows


class Network(nn.Module):
    """A causal LM of transformers, with an adapter or without, and how it is computed."""

    def __init__(
        self, causal_lm: Any, *, dtype: torch.dtype, chunk_tokens: int | None = None
    ) -> None:
        """`dtype` is that of matrix products; `chunk_tokens` go through the LM head at once."""
        super().__init__()
        self.causal_lm: Any = causal_lm
        self.dtype = dtype
        self.is_cut = False  # over several processes: ranks/sharding.py
        self.logit_map = LogitMap()  # what this model does before its softmax: policy.py finds it
        self.skips_rows = True  # of its last layer: policy.py tries whether it bears that
        self._chunk_tokens = chunk_tokens or default_chunk_tokens(self.head.weight.shape[0])

    @property
    def body(self) -> nn.Module:
        """Everything but the LM head: token ids to hidden states."""
        return cast(nn.Module, self.causal_lm.base_model)

    @property
    def head(self) -> nn.Linear:
        return cast(nn.Linear, self.causal_lm.get_output_embeddings())

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype in (torch.float32, torch.float64):
            return nullcontext()
        # Of weights that are cut over processes it would keep a narrow copy of the whole.
        device = self.head.weight.device.type
        return torch.autocast(device, dtype=self.dtype, cache_enabled=not self.is_cut)

    def hidden_states(
        self, token_ids: Tensor, position_ids: Tensor, *, wanted: Tensor | None = None
    ) -> Tensor:
        """Return what the body makes of [rows, width] tokens: [rows, width, hidden].

        `wanted` counts in token_ids.flatten(); the others may then be anything.
        """
        skipping = nullcontext() if wanted is None else only_rows(self.body, wanted)
        with self.autocast(), positions_of_row(position_ids), skipping:
            output = self.body(input_ids=token_ids, position_ids=position_ids, use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def forward(self, token_ids: Tensor, position_ids: Tensor, action_index: Tensor) -> Tensor:
        """Return log p of the tokens at `action_index` given those before them: nats, [actions].

        `token_ids` and `position_ids` are [rows, width]; `action_index` [actions] counts in
        token_ids.flatten(). The answer is in float32 at least.
        """
        rows = action_index - 1  # a token is predicted where the one before it was read
        # Of most tokens, taking them out costs more memory than leaving the others out saves.
        is_worth_it = self.skips_rows and 2 * len(rows) <= token_ids.numel()
        wanted = rows if is_worth_it else None
        hidden = self.hidden_states(token_ids, position_ids, wanted=wanted).flatten(0, 1)
        hidden = hidden.index_select(0, rows)
        return token_logprobs(
            hidden.to(self.dtype),
            token_ids.flatten()[action_index],
            weight=self.head.weight,
            bias=self.head.bias,
            chunk_tokens=self._chunk_tokens,
            logit_map=self.logit_map,
        )
