"""Keys and values of what was already read: a sequence's own, and the rows of the decoding batch.

    DynamicCache   one sequence, grows by whole pieces of text       prefill, scoring; transformers'
    RowCache       many sequences, one row each, one token a step    decoding

A sequence's keys and values are copied into a row when it begins to decode and out of it when the
turn ends: between turns they take only the room they need, and a row serves whoever is next.
Tensors of `KeyValues` are never written to again, so sequences may share them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from rnow.engines.local.attention import KEY_BLOCK

KeyValues = tuple[tuple[Tensor, Tensor], ...]  # per layer, each [1, kv heads, tokens, head]


class RowCache(Cache):  # type: ignore[misc]  # transformers ships no types
    """Key-value cache of `num_rows` sequences, each at its own length.

    Memory grows with the longest sequence that is decoding, by half at a time, and is given back by
    `clear`.
    """

    def __init__(self, num_rows: int) -> None:
        super().__init__(layers=[])
        self._num_rows = num_rows
        self._layers: list[tuple[Tensor, Tensor]] = []  # each [rows, kv heads, capacity, head]
        self._step_rows = torch.arange(num_rows)  # those that the step at hand runs
        self._positions = torch.zeros(num_rows, dtype=torch.long)
        self._num_keys = KEY_BLOCK

    def put(self, row: int, key_values: KeyValues) -> None:
        """Copy a sequence into `row`; what the row held before is forgotten."""
        length = key_values[0][0].shape[2]
        self._reserve(length + 1, like=key_values)
        for (keys, values), (new_keys, new_values) in zip(self._layers, key_values, strict=True):
            keys[row, :, :length] = new_keys[0]
            values[row, :, :length] = new_values[0]

    def take(self, row: int, length: int) -> KeyValues:
        """Copy the first `length` tokens of `row` out."""
        return tuple(
            (keys[row : row + 1, :, :length].clone(), values[row : row + 1, :, :length].clone())
            for keys, values in self._layers
        )

    def place(self, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Say where the next step's tokens stand, one position for each of the first rows.

        Returns the positions [rows, 1] and the additive mask [rows, 1, 1, keys] over whole blocks.
        """
        longest = max(positions) + 1
        self._num_keys = -(-longest // KEY_BLOCK) * KEY_BLOCK
        self._reserve(longest, like=self._layers)
        device = self._layers[0][0].device
        self._step_rows = torch.arange(len(positions), device=device)
        self._positions = torch.tensor(positions, device=device)
        hidden = torch.arange(self._num_keys, device=device) > self._positions[:, None]
        mask = torch.zeros(hidden.shape, device=device).masked_fill_(hidden, float("-inf"))
        return self._positions[:, None], mask[:, None, None, :]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self._layers[layer_idx]
        keys[self._step_rows, :, self._positions] = key_states[:, :, 0]
        values[self._step_rows, :, self._positions] = value_states[:, :, 0]
        num_rows, num_keys = len(self._step_rows), self._num_keys
        return keys[:num_rows, :, :num_keys], values[:num_rows, :, :num_keys]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self._positions.max())

    def clear(self) -> None:
        self._layers = []

    def _reserve(self, length: int, *, like: Sequence[tuple[Tensor, Tensor]]) -> None:
        capacity = self._layers[0][0].shape[2] if self._layers else 0
        if length <= capacity:
            return
        blocks = -(-max(length, capacity * 3 // 2) // KEY_BLOCK)
        grown = []
        for index, pair in enumerate(like):
            # Zeros, not whatever memory held: a masked key weighs exactly 0, and 0 times NaN is
            # NaN.
            fresh = tuple(
                old.new_zeros(self._num_rows, old.shape[1], blocks * KEY_BLOCK, old.shape[3])
                for old in pair
            )
            if self._layers:
                fresh[0][:, :, :capacity] = self._layers[index][0]
                fresh[1][:, :, :capacity] = self._layers[index][1]
            grown.append((fresh[0], fresh[1]))
        self._layers = grown
