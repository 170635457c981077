"""Trajectories into micro-batches: nothing lost, nothing doubled, only action tokens scored."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from builders import make_trajectory
from hypothesis import given
from hypothesis import strategies as st

from rnow.learner.packing import EVEN_TOKENS, MicroBatch, pack, plan_packed, plan_padded
from rnow.records import Batch, RolloutId, ScoredTrajectory


def scored(
    rollout: int, mask: Sequence[bool], turns: Sequence[int] | None = None
) -> ScoredTrajectory:
    """A trajectory whose numbers all tell which rollout and position they are of."""
    action = np.array(mask, dtype=np.bool_)
    position = np.arange(len(action))
    return ScoredTrajectory(
        trajectory=make_trajectory(
            1000 * (rollout + 1) + position,
            action,
            id=RolloutId(0, 0, rollout),
            turn_index=turns,
            sampler_logprobs=-rollout - position / 1024,
        ),
        teacher_logprobs=np.where(action, -rollout - position / 512, np.nan).astype(np.float32),
    )


def batch_of(masks: Sequence[Sequence[bool]]) -> Batch:
    return Batch(step=0, scored=tuple(scored(i, mask) for i, mask in enumerate(masks)))


def test_two_trajectories_stand_one_after_the_other_in_a_row() -> None:
    first = scored(0, [False, True, True, False, True], turns=[-1, 0, 0, 0, 1])
    second = scored(1, [False, False, True], turns=[-1, -1, 0])
    (micro_batch,) = pack(Batch(step=0, scored=(first, second)), max_tokens=8, pads=False)
    assert micro_batch.token_ids.tolist() == [[1000, 1001, 1002, 1003, 1004, 2000, 2001, 2002]]
    assert micro_batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert micro_batch.action_index.tolist() == [1, 2, 4, 7]
    assert micro_batch.actions.trajectory_index.tolist() == [0, 0, 0, 1]


def test_two_trajectories_share_a_micro_batch_padded_on_the_right() -> None:
    first = scored(0, [False, True, True, False, True], turns=[-1, 0, 0, 0, 1])
    second = scored(1, [False, False, True], turns=[-1, -1, 0])
    (micro_batch,) = pack(Batch(step=0, scored=(first, second)), max_tokens=10, pads=True)
    assert micro_batch.token_ids.tolist() == [
        [1000, 1001, 1002, 1003, 1004],
        [2000, 2001, 2002, 0, 0],
    ]
    assert micro_batch.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert micro_batch.action_index.tolist() == [1, 2, 4, 7]
    actions = micro_batch.actions
    assert actions.trajectory_index.tolist() == [0, 0, 0, 1]
    assert actions.turn_index.tolist() == [0, 0, 1, 0]
    assert actions.sampler_logprobs.tolist() == [
        -1 / 1024,
        -2 / 1024,
        -4 / 1024,
        -1 - 2 / 1024,
    ]
    assert actions.teacher_logprobs.tolist() == [
        -1 / 512,
        -2 / 512,
        -4 / 512,
        -1 - 2 / 512,
    ]


def test_one_token_less_room_makes_two_micro_batches() -> None:
    masks = [[False] * 4 + [True], [False, True]]
    for pads, enough in ((False, 7), (True, 10)):
        sizes = (enough, enough - 1)
        cuts = [len(pack(batch_of(masks), max_tokens=size, pads=pads)) for size in sizes]
        assert cuts == [1, 2]


def test_what_follows_the_last_action_token_is_left_out() -> None:
    (micro_batch,) = pack(batch_of([[False, True, False, False]]), max_tokens=100, pads=False)
    assert micro_batch.token_ids.tolist() == [[1000, 1001]]


def test_a_trajectory_without_an_action_token_takes_no_room() -> None:
    micro_batches = pack(batch_of([[False, False], [False, True]]), max_tokens=100, pads=False)
    assert [micro_batch.token_ids.tolist() for micro_batch in micro_batches] == [[[2000, 2001]]]


def test_an_action_that_nothing_predicts_is_refused() -> None:
    with pytest.raises(ValueError, match="first token") as caught:
        pack(batch_of([[True, False]]), max_tokens=100, pads=False)
    assert (
        str(caught.value) == "trajectory 0.0.0: its first token is an action; nothing predicts it"
    )


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100))
def test_a_plan_of_packed_rows_holds_every_sequence_once_and_evens_out_costs(
    lengths: list[int], bound: int
) -> None:
    plan = plan_packed(lengths, max_tokens=bound)
    placed = [index for row in plan for index in row]
    assert sorted(placed) == [index for index, length in enumerate(lengths) if length]
    widths = [sum(lengths[index] for index in row) for row in plan]
    assert widths == sorted(widths, reverse=True)
    for row, width in zip(plan, widths, strict=True):
        assert len(row) == 1 or width <= bound
    if bound >= sum(lengths):
        assert len(plan) == (1 if placed else 0)
    # Where room does not decide, no row is dearer than the cheapest by more than its last sequence.
    costs = [sum(cost(lengths[index]) for index in row) for row in plan]
    for row, total in zip(plan, costs, strict=True):
        if len(row) > 1 and all(width + lengths[row[-1]] <= bound for width in widths):
            assert total - cost(lengths[row[-1]]) <= min(costs)


def cost(length: int) -> int:
    return length * (EVEN_TOKENS + length)


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 100))
def test_a_plan_holds_every_sequence_once_within_its_bound(lengths: list[int], bound: int) -> None:
    plan = plan_padded(lengths, max_tokens=bound)
    placed = [index for rows in plan for index in rows]
    assert sorted(placed) == [index for index, length in enumerate(lengths) if length]
    for rows in plan:
        assert len(rows) == 1 or len(rows) * max(lengths[index] for index in rows) <= bound
        assert lengths[rows[0]] == max(lengths[index] for index in rows)


MASKS = st.lists(
    st.lists(st.booleans(), min_size=1, max_size=12).map(lambda tail: [False, *tail]),
    min_size=1,
    max_size=8,
)


@given(MASKS, st.integers(1, 60), st.booleans())
def test_every_action_token_is_scored_once_with_its_own_numbers(
    masks: list[list[bool]], max_tokens: int, pads: bool
) -> None:
    batch = batch_of(masks)
    micro_batches = pack(batch, max_tokens=max_tokens, pads=pads)
    seen = [row for micro_batch in micro_batches for row in actions(micro_batch)]
    expected = [
        (index, 1000 * (index + 1) + i, -index - i / 1024, -index - i / 512)
        for index, mask in enumerate(masks)
        for i, action in enumerate(mask)
        if action
    ]
    assert sorted(seen) == expected


def actions(micro_batch: MicroBatch) -> list[tuple[int, int, float, float]]:
    """Trajectory, token, sampler's and teacher's log-probability of each action token, in order."""
    token_ids = micro_batch.token_ids.flatten()[micro_batch.action_index]
    rows = torch.stack(
        [
            micro_batch.actions.trajectory_index.double(),
            token_ids.double(),
            micro_batch.actions.sampler_logprobs.double(),
            micro_batch.actions.teacher_logprobs.double(),
        ],
        dim=1,
    ).tolist()
    return [(int(index), int(token), sampler, teacher) for index, token, sampler, teacher in rows]
