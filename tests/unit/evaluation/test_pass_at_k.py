from itertools import combinations

import pytest

from rnow.errors import UsageError
from rnow.evaluation.pass_at_k import PassAtK, attempts_of, choose_passes, pass_at_k, temperatures


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_attempt() -> None:
    for num in range(1, 7):
        for num_correct in range(num + 1):
            attempts = [True] * num_correct + [False] * (num - num_correct)
            for k in range(1, num + 1):
                draws = [any(draw) for draw in combinations(attempts, k)]
                expected = sum(draws) / len(draws)
                assert pass_at_k(num, num_correct, k=k) == pytest.approx(expected, abs=1e-12)


def test_fewer_attempts_than_k_are_no_estimate() -> None:
    with pytest.raises(ValueError, match="1 right of 3 attempts say nothing about pass@4"):
        pass_at_k(3, 1, k=4)


def test_metrics_at_one_temperature_share_attempts_and_others_have_their_own() -> None:
    passes = (PassAtK(1, 0.0), PassAtK(4, 0.8), PassAtK(8, 0.8))
    assert temperatures(passes) == (0.0, *[0.8] * 8)
    assert attempts_of(passes[0], passes) == {0}
    assert attempts_of(passes[1], passes) == attempts_of(passes[2], passes) == set(range(1, 9))
    assert temperatures((PassAtK(1, 0.8), PassAtK(8, 0.8))) == (0.8,) * 8


def test_metrics_that_are_off_are_left_out_and_one_must_be_on() -> None:
    wanted = [(PassAtK(8, 0.8), True), (PassAtK(1, 0.0), True), (PassAtK(4, 0.6), False)]
    assert choose_passes(wanted) == (PassAtK(1, 0.0), PassAtK(8, 0.8))
    with pytest.raises(UsageError, match=r"^At least one pass@k metric must be enabled$"):
        choose_passes([(PassAtK(1, 0.0), False), (PassAtK(4, 0.6), False)])


def test_several_greedy_attempts_would_all_be_the_same() -> None:
    with pytest.raises(UsageError) as caught:
        choose_passes([(PassAtK(4, 0.0), True)])
    assert str(caught.value) == (
        "--pass4-temp is 0, where all 4 attempts are the same; give a temperature above 0"
    )
