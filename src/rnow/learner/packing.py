"""A batch of trajectories -> micro-batches of tensors for the network, by tokens.

Trajectories stand one after another in a single row; their positions start again with each, and
that is where attention.py sees the borders:

    token_ids      7 8 9 2 5 1 7 8 4 2      action_index: where each action token stands in
    position_ids   0 1 2 3 4 5 0 1 2 3      token_ids.flatten()

A network in which something else than attention carries what it read further along the row would
carry it into the next trajectory: packable.py finds that out, and such a network gets one row a
trajectory, filled on the right. There is no attention mask there: attention is causal, so no token
sees the padding to its right, and no padding is an action token.

Nothing outside this module knows of rows. Which trajectories go together depends on their lengths
and their order in the batch alone, which is that of their ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from rnow.learner.objective import ActionTokens
from rnow.records import Batch, ScoredTrajectory

# So many tokens in one sequence, and attention takes as long as the matrix products.
EVEN_TOKENS = 48_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """What goes through the network at once.

    MicroBatch(token_ids=[[7, 8, 9, 2]], position_ids=[[0, 1, 2, 3]], action_index=[2, 3],
               actions=ActionTokens(…))
    """

    token_ids: Tensor  # [rows, width] int64; padding is 0
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


def pack(batch: Batch, *, max_tokens: int, pads: bool) -> tuple[MicroBatch, ...]:
    """Return all of `batch` in micro-batches of at most `max_tokens` tokens, padding counted.

    A trajectory longer than that goes alone. What follows a trajectory's last action token is left
    out: nothing there is trained and nothing before it can see it. `pads`: one row a trajectory.
    """
    lengths = [_trained_length(item) for item in batch.scored]
    plan = (plan_padded if pads else plan_packed)(lengths, max_tokens=max_tokens)
    return tuple(_micro_batch(batch, members, lengths=lengths, pads=pads) for members in plan)


def plan_packed(lengths: Sequence[int], *, max_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Return which sequences go into one row, as indices: of few rows, all of much the same cost.

    The dearest first, each to the cheapest row with room for it; fullest rows first: what does not
    fit in memory then fails at once.

    >>> plan_packed([3, 9, 4, 3], max_tokens=8)
    ((1,), (2, 3), (0,))
    """
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: (-lengths[i], i))
    fewest = -(-sum(lengths) // max_tokens)
    # With as many rows as sequences each finds an empty one.
    dealt = (
        _deal(order, lengths, num_rows=num_rows, max_tokens=max_tokens)
        for num_rows in count(max(1, fewest))
    )
    rows = next(rows for rows in dealt if rows is not None)
    rows.sort(key=lambda row: (-sum(lengths[index] for index in row), row))
    return tuple(tuple(row) for row in rows)


def _deal(
    order: Sequence[int], lengths: Sequence[int], *, num_rows: int, max_tokens: int
) -> list[list[int]] | None:
    """Deal sequences to the cheapest of so many rows; None where one finds no room."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    costs, widths = [0] * num_rows, [0] * num_rows
    for index in order:
        length = lengths[index]
        room = [
            row for row in range(num_rows) if not rows[row] or widths[row] + length <= max_tokens
        ]
        if not room:
            return None
        row = min(room, key=lambda row: costs[row])
        rows[row].append(index)
        widths[row] += length
        costs[row] += length * (EVEN_TOKENS + length)
    return [row for row in rows if row]


def plan_padded(lengths: Sequence[int], *, max_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Return which sequences go together with one row for each, as indices.

    Like lengths together, longest first.

    >>> plan_padded([3, 9, 4, 3], max_tokens=8)
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


def _micro_batch(
    batch: Batch, members: Sequence[int], *, lengths: Sequence[int], pads: bool
) -> MicroBatch:
    width = lengths[members[0]] if pads else sum(lengths[index] for index in members)
    token_ids = np.zeros((len(members) if pads else 1, width), dtype=np.int64)
    position_ids = np.zeros_like(token_ids) + (np.arange(width) if pads else 0)
    parts, start = [], 0
    for index in members:
        scored = batch.scored[index]
        trajectory = scored.trajectory
        length = lengths[index]
        token_ids.reshape(-1)[start : start + length] = trajectory.token_ids[:length]
        position_ids.reshape(-1)[start : start + length] = np.arange(length)
        actions = np.flatnonzero(trajectory.action_mask)
        parts.append(
            (
                start + actions,
                np.full(len(actions), index),
                trajectory.turn_index[actions],
                trajectory.sampler_logprobs[actions],
                scored.teacher_logprobs[actions],
            )
        )
        start += width if pads else length
    action_index, trajectory_index, turn_index, sampler_logprobs, teacher_logprobs = (
        torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)
    )
    return MicroBatch(
        token_ids=torch.from_numpy(token_ids),
        position_ids=torch.from_numpy(position_ids),
        action_index=action_index.long(),
        actions=ActionTokens(
            trajectory_index=trajectory_index.long(),
            turn_index=turn_index.long(),
            sampler_logprobs=sampler_logprobs,
            teacher_logprobs=teacher_logprobs,
        ),
    )
