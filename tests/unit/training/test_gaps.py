"""Intervals of a step, by hand and by drawing."""

import numpy as np
import pytest
from builders import make_trajectory
from numpy.typing import ArrayLike

from rnow.records import RolloutId, ScoredTrajectory
from rnow.training.gaps import gap_metrics, t_quantile


def scored(prompt: int, rollout: int, gaps: ArrayLike) -> ScoredTrajectory:
    gaps = np.asarray(gaps, dtype=np.float32)
    mask = [0, *[1] * len(gaps)]
    one = make_trajectory([5] * len(mask), mask, id=RolloutId(0, prompt, rollout))
    teacher = one.sampler_logprobs - np.array([0, *gaps], dtype=np.float32)
    return ScoredTrajectory(trajectory=one, teacher_logprobs=teacher)


def test_quantiles_of_students_t() -> None:
    known = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 10: 2.228, 63: 1.998, 10_000: 1.960}
    for freedom, quantile in known.items():
        assert t_quantile(freedom) == pytest.approx(quantile, rel=0.02)


def test_the_interval_of_the_gap_is_over_prompts() -> None:
    # Two prompts of one token a rollout: means 1 and 3, sampled twice the same. A sum is off by
    # ±2 of 4 tokens, so its half width is t(1) · sqrt(2 · 2 · (2/4)²) = 12.706.
    batch = [
        scored(prompt, rollout, [gap]) for prompt, gap in ((0, 1), (1, 3)) for rollout in (0, 1)
    ]
    found = gap_metrics(batch, [None] * 4)
    assert found == {"reverse_kl/within": pytest.approx(12.706)}


def test_of_one_prompt_there_is_no_interval() -> None:
    assert gap_metrics([scored(0, 0, [1.0]), scored(0, 1, [2.0])], [True, False]) == {}


def step(gap_right: float, gap_wrong: float) -> dict[str, float]:
    """32 prompts, two rollouts each; every second prompt is answered right."""
    batch = [
        scored(prompt, rollout, [gap_wrong if prompt % 2 else gap_right, 0.0])
        for prompt in range(32)
        for rollout in (0, 1)
    ]
    return gap_metrics(batch, [one.trajectory.id.prompt % 2 == 0 for one in batch])


def test_a_teacher_that_likes_right_rollouts_more_would_be_right_more_often() -> None:
    # Weights e⁰ and e^-0.5 on two halves: right with 1 / (1 + e^-0.5).
    found = step(0.0, 0.5)
    assert found["teacher/gain"] == pytest.approx(1 / (1 + np.exp(-0.5)) - 0.5, abs=1e-6)
    assert 0 < found["teacher/gain_within"] < 0.1


def test_the_same_teacher_gains_nothing_for_certain() -> None:
    found = step(0.0, 0.0)
    assert (found["teacher/gain"], found["teacher/gain_within"]) == (0.0, 0.0)


def test_where_few_rollouts_have_the_weight_nothing_is_said() -> None:
    batch = [scored(prompt, 0, [float(prompt)]) for prompt in range(20)]
    found = gap_metrics(batch, [prompt % 2 == 0 for prompt in range(20)])
    assert set(found) == {"reverse_kl/within"}


def test_a_student_that_is_never_right_says_nothing_of_the_teacher() -> None:
    batch = [scored(prompt, 0, [0.0]) for prompt in range(20)]
    assert set(gap_metrics(batch, [False] * 20)) == {"reverse_kl/within"}
    assert set(gap_metrics(batch, [True] * 16 + [False] * 4)) == {"reverse_kl/within"}


def test_the_interval_holds_the_true_gain_nineteen_times_of_twenty() -> None:
    # Answers are drawn by the student; the teacher's own chance of each is known.
    random, held = np.random.default_rng(0), 0
    student = np.array([0.5, 0.3, 0.2])  # a right answer, and two wrong ones
    teacher = np.array([0.6, 0.3, 0.1])
    gaps = np.log(student / teacher)
    for _ in range(200):
        drawn = random.choice(3, size=64, p=student)
        batch = [scored(number, 0, [gaps[answer]]) for number, answer in enumerate(drawn)]
        found = gap_metrics(batch, [bool(answer == 0) for answer in drawn])
        held += abs(found["teacher/gain"] - 0.1) <= found["teacher/gain_within"]
    assert held >= 180


def test_an_order_of_rollouts_changes_nothing() -> None:
    batch = [scored(prompt, 0, [0.1 * (prompt % 3)]) for prompt in range(20)]
    verdicts = [prompt % 2 == 0 for prompt in range(20)]
    one = gap_metrics(batch, verdicts)
    other = gap_metrics(batch[::-1], verdicts[::-1])
    assert other == {name: pytest.approx(value, abs=1e-12) for name, value in one.items()}
