"""Which rank computes which micro-batches."""

from typing import Any

import rank_cases

from rnow.learner.packing import pack
from rnow.learner.ranks.dealing import cost, deal


def packed(max_tokens: int) -> Any:
    return pack(rank_cases.batch(), max_tokens=max_tokens, pads=False)


def test_micro_batches_are_dealt_dearest_first_and_ties_by_index() -> None:
    assert deal([7, 7, 7, 7], 2) == ((0, 2), (1, 3))
    #   9 │ 8     9 │ 13     13 │ 13     15 │ 13     15 │ 14
    assert deal([1, 9, 4, 8, 2, 5], 2) == ((1, 2, 4), (0, 3, 5))
    assert deal([3], 3) == ((0,), (), ())
    assert deal([], 2) == ((), ())


def test_the_cost_counts_attention_within_each_sequence_however_it_is_laid_out() -> None:
    lengths = [len(item.trajectory.token_ids) for item in rank_cases.batch().scored]
    apart = sum(cost(one) for one in packed(1))
    assert apart == sum(48_000 * length + length**2 for length in lengths)
    (together,) = packed(100_000)
    assert cost(together) == apart
    (padded,) = pack(rank_cases.batch(), max_tokens=100_000, pads=True)  # padding is computed too
    assert cost(padded) == 7 * (48_000 * 52 + 52**2)


def test_the_batch_of_the_cases_leaves_ranks_with_less_work_and_with_none() -> None:
    hands = {
        cut: [len(hand) for hand in deal([cost(one) for one in packed(cut)], 3)]
        for cut in rank_cases.CUTS
    }
    assert hands == {1: [2, 2, 3], 60: [1, 1, 2], 100_000: [1, 0, 0]}
