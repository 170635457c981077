"""A batch of trajectories -> micro-batches of tensors for the network, by tokens.

This version pads: a micro-batch is rows of one width, filled on the right.

    token_ids   7 8 9 2 5 1     position_ids   0 1 2 3 4 5     action_index: where each action token
                7 8 4 2 0 0                    0 1 2 3 4 5     stands in token_ids.flatten()

There is no attention mask. Attention is causal, so no token sees the padding to its right, and no
padding is an action token; without a mask the fast attention kernels can be used, and none of
[width, width] is made. Nor does anything outside this module know of rows: packing without padding
is one row whose positions start again with each trajectory.

Which trajectories go together depends on their lengths and their order in the batch alone, which is
that of their ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rnow.learner.objective import ActionTokens
from rnow.records import Batch, ScoredTrajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What goes through the network at once.

    MicroBatch(token_ids=[[7, 8, 9, 2]], position_ids=[[0, 1, 2, 3]], action_index=[2, 3],
               actions=ActionTokens(…))
    """

    token_ids: Tensor  # [rows, width] int64, padded with 0
    position_ids: Tensor  # [rows, width] int64
    action_index: (
        Tensor  # [actions] int64, in token_ids.flatten(); never a trajectory's first token
    )
    actions: ActionTokens  # trajectory_index counts in the batch

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(
            token_ids=self.token_ids.to(device),
            position_ids=self.position_ids.to(device),
            action_index=self.action_index.to(device),
            actions=self.actions.to(device),
        )


def pack(batch: Batch, *, max_tokens: int) -> tuple[MicroBatch, ...]:
    """Return all of `batch` in micro-batches of at most `max_tokens` tokens, padding counted.

    A trajectory longer than that goes alone. What follows a trajectory's last action token is left
    out: nothing there is trained and nothing before it can see it.
    """
    lengths = [_trained_length(item) for item in batch.scored]
    return tuple(
        _micro_batch(batch, rows, lengths=lengths)
        for rows in plan_micro_batches(lengths, max_tokens=max_tokens)
    )


def plan_micro_batches(lengths: Sequence[int], *, max_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Return which sequences go together, as indices.

    Like lengths together, longest first: what does not fit in memory then fails at once.

    >>> plan_micro_batches([3, 9, 4, 3], max_tokens=8)
    ((1,), (2, 0), (3,))
    """
    plan: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[index] == 0:
            continue
        if plan and width * (len(plan[-1]) + 1) <= max_tokens:
            plan[-1].append(index)
        else:
            plan.append([index])
            width = lengths[index]
    return tuple(tuple(rows) for rows in plan)


def _trained_length(item: ScoredTrajectory) -> int:
    """Return the number of tokens up to the last action token; 0 if there is none."""
    actions = np.flatnonzero(item.trajectory.action_mask)
    if len(actions) == 0:
        return 0
    if actions[0] == 0:
        raise ValueError(
            f"trajectory {item.trajectory.id}: its first token is an action; nothing predicts it"
        )
    return int(actions[-1]) + 1


def _micro_batch(batch: Batch, rows: Sequence[int], *, lengths: Sequence[int]) -> MicroBatch:
    width = lengths[rows[0]]
    token_ids = np.zeros((len(rows), width), dtype=np.int64)
    parts = []
    for row, index in enumerate(rows):
        scored = batch.scored[index]
        trajectory = scored.trajectory
        length = lengths[index]
        token_ids[row, :length] = trajectory.token_ids[:length]
        actions = np.flatnonzero(trajectory.action_mask)
        parts.append(
            (
                row * width + actions,
                np.full(len(actions), index),
                trajectory.turn_index[actions],
                trajectory.sampler_logprobs[actions],
                scored.teacher_logprobs[actions],
            )
        )
    action_index, trajectory_index, turn_index, sampler_logprobs, teacher_logprobs = (
        torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)
    )
    return MicroBatch(
        token_ids=torch.from_numpy(token_ids),
        position_ids=torch.arange(width).expand(len(rows), width),
        action_index=action_index.long(),
        actions=ActionTokens(
            trajectory_index=trajectory_index.long(),
            turn_index=turn_index.long(),
            sampler_logprobs=sampler_logprobs,
            teacher_logprobs=teacher_logprobs,
        ),
    )
