"""The maths of one update, against sums worked out by hand."""

from math import exp, log

import pytest
import torch

from rnow.config.settings import AlgorithmSettings
from rnow.learner.objective import ActionTokens, Objective, compute_objective

LN2 = log(2.0)

Actions = tuple[torch.Tensor, ActionTokens]  # the policy's log-probabilities, and the rest


def tokens(
    policy: list[float],
    *,
    teacher: list[float],
    sampler: list[float] | None = None,
    trajectories: list[int] | None = None,
    turns: list[int] | None = None,
) -> Actions:
    """Action tokens of one trajectory in one turn, sampled by the policy unless said otherwise."""
    policy_logprobs = torch.tensor(policy, dtype=torch.float64, requires_grad=True)
    return policy_logprobs, ActionTokens(
        sampler_logprobs=torch.tensor(policy if sampler is None else sampler, dtype=torch.float64),
        teacher_logprobs=torch.tensor(teacher, dtype=torch.float64),
        trajectory_index=torch.tensor(trajectories or [0] * len(policy)),
        turn_index=torch.tensor(turns or [0] * len(policy)),
    )


def objective_of(actions: Actions, **settings: object) -> Objective:
    policy_logprobs, rest = actions
    return compute_objective(
        policy_logprobs,
        rest,
        settings=AlgorithmSettings(**settings),  # type: ignore[arg-type]
        num_actions=len(rest),
        num_turns=1 + int(rest.turn_index.max()),
    )


def gradient_of(actions: Actions, **settings: object) -> list[float]:
    objective_of(actions, **settings).loss.backward()
    grad = actions[0].grad
    assert grad is not None
    return grad.tolist()


def gaps_of(actions: Actions, **settings: object) -> list[float]:
    """What each token pays: where the sampler was the policy, −A = N · d loss / d logprob."""
    return [len(actions[1]) * each for each in gradient_of(actions, **settings)]


def five_tokens() -> Actions:
    # One trajectory. Turn 0 sampled three tokens, a tool answered, turn 1 sampled two.
    #
    #   token                 0        1        2      | 3        4
    #   turn                  0        0        0      | 1        1
    #   policy              −0.5     −1.0     −0.2     | −2.0     −0.1
    #   teacher             −1.0     −0.4     −0.2     | −14.0    −0.9
    #   sampler          −0.5−ln2    −1.0   −0.2+ln2   | −2.0   −0.1−ln 1.1
    return tokens(
        [-0.5, -1.0, -0.2, -2.0, -0.1],
        teacher=[-1.0, -0.4, -0.2, -14.0, -0.9],
        sampler=[-0.5 - LN2, -1.0, -0.2 + LN2, -2.0, -0.1 - log(1.1)],
        turns=[0, 0, 0, 1, 1],
    )


def test_loss_and_gradient_of_five_tokens_in_two_turns_are_those_worked_out_by_hand() -> None:
    #   ratio                  2        1       0.5      | 1        1.1
    #   reverse_kl            0.5     −0.6      0.0      | 12.0     0.8
    #   clipped to ±10        0.5     −0.6      0.0      | 10.0     0.8
    #
    # kl_discount 0.5 and the sum from the right; the tool's text between 2 and 3 is not counted:
    #   gap_4 = 0.8
    #   gap_3 = 10 + 0.5·0.8    = 10.4
    #   gap_2 = 0 + 0.5·10.4    = 5.2
    #   gap_1 = −0.6 + 0.5·5.2  = 2.0
    #   gap_0 = 0.5 + 0.5·2.0   = 1.5
    # kl_penalty_coef 0.1:
    #   A                    −0.15    −0.2    −0.52      | −1.04   −0.08
    #   ratio·A              −0.3     −0.2    −0.26      | −1.04   −0.088
    #   clip(ratio, .8, 1.2) 1.2       1       0.8       | 1        1.1
    #   clip·A               −0.18    −0.2    −0.416     | −1.04   −0.088
    #   min                  −0.3     −0.2    −0.416     | −1.04   −0.088     sum −2.044
    # loss = 2.044 / 5 = 0.4088
    #
    # d loss / d policy_logprob = −ratio·A / 5 where the first of the two is the min, else 0:
    #                        0.06    0.04     0         | 0.208    0.0176
    actions = five_tokens()
    result = objective_of(actions, kl_penalty_coef=0.1, kl_discount=0.5)
    result.loss.backward()

    assert result.loss.item() == pytest.approx(0.4088, abs=1e-12)
    grad = actions[0].grad
    assert grad is not None
    assert grad.tolist() == pytest.approx([0.06, 0.04, 0.0, 0.208, 0.0176], abs=1e-12)
    assert grad[2] == 0.0

    totals = result.totals
    assert totals.loss.item() == result.loss.item()
    assert totals.reverse_kl.item() == pytest.approx(12.7)
    assert totals.ratio.item() == pytest.approx(5.6)
    # Σ (ratio − 1 − log ratio) = (1 − ln2) + 0 + (−0.5 + ln2) + 0 + (0.1 − ln 1.1)
    assert totals.mismatch_kl.item() == pytest.approx(0.6 - log(1.1))
    assert totals.num_clipped.item() == 1.0  # token 2
    assert totals.num_kl_clipped.item() == 1.0  # token 3
    assert totals.num_ratio_capped.item() == 0.0
    assert totals.max_advantage.item() == pytest.approx(1.04)
    assert totals.turn_reverse_kl.tolist() == pytest.approx([-0.1, 12.8])
    assert totals.turn_actions.tolist() == [3.0, 2.0]


def test_importance_sampling_is_the_same_without_the_clip() -> None:
    # Σ ratio·A = −0.3 − 0.2 − 0.26 − 1.04 − 0.088 = −1.888, as worked out above
    actions = five_tokens()
    result = objective_of(
        actions, kl_penalty_coef=0.1, kl_discount=0.5, loss_fn="importance_sampling"
    )
    result.loss.backward()
    assert result.loss.item() == pytest.approx(1.888 / 5, abs=1e-12)
    grad = actions[0].grad
    assert grad is not None
    assert grad.tolist() == pytest.approx([0.06, 0.04, 0.052, 0.208, 0.0176], abs=1e-12)
    assert result.totals.num_clipped.item() == 0.0


def test_the_student_pays_for_what_it_likes_more_than_the_teacher() -> None:
    # Descent goes against the gradient: positive lowers a token's probability, negative raises it.
    likes_more, likes_less = gradient_of(tokens([-0.1, -3.0], teacher=[-2.0, -0.5]))
    assert likes_more == pytest.approx(1.9 / 2)
    assert likes_less == pytest.approx(-2.5 / 2)


def test_one_descent_step_lowers_the_probability_of_a_token_that_the_teacher_dislikes() -> None:
    logits = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    before = logits.log_softmax(0)[0]
    actions = ActionTokens(
        sampler_logprobs=before.detach()[None],
        teacher_logprobs=torch.tensor([-5.0]),
        trajectory_index=torch.tensor([0]),
        turn_index=torch.tensor([0]),
    )
    objective_of((before[None], actions)).loss.backward()
    assert logits.grad is not None
    assert (logits - 0.1 * logits.grad).log_softmax(0)[0] < before


def test_no_gradient_goes_through_the_advantage() -> None:
    # With the gap in the graph the gradient of ratio·(policy − teacher) would have a second term.
    actions = tokens([-0.5], teacher=[-1.0])
    assert gradient_of(actions, loss_fn="importance_sampling") == pytest.approx([0.5])
    assert not objective_of(actions).totals.loss.requires_grad


def test_without_a_discount_a_token_pays_for_itself_alone() -> None:
    actions = tokens([-1.0, -1.0, -1.0], teacher=[-2.0, -1.5, -4.0])
    assert gaps_of(actions) == pytest.approx([1.0, 0.5, 3.0])


def test_the_discounted_sum_ends_with_the_trajectory() -> None:
    # Trajectory 4 has tokens 0 to 2, trajectory 7 tokens 3 to 4; discount 1.
    actions = tokens(
        [-1.0] * 5, teacher=[-2.0, -3.0, -5.0, -9.0, -2.0], trajectories=[4, 4, 4, 7, 7]
    )
    assert gaps_of(actions, kl_discount=1.0) == pytest.approx([7.0, 6.0, 4.0, 9.0, 1.0])


@pytest.mark.parametrize("discount", [0.3, 0.99, 1.0])
def test_the_discounted_sum_equals_a_loop_from_the_right(discount: float) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = (-3 * torch.rand(157, generator=generator, dtype=torch.float64)).tolist()
    trajectories = [0] * 40 + [1] * 1 + [2] * 100 + [3] * 16
    expected = [0.0] * 157
    for index in reversed(range(157)):
        later = 0.0
        if index + 1 < 157 and trajectories[index + 1] == trajectories[index]:
            later = expected[index + 1]
        expected[index] = (-1.0 - teacher[index]) + discount * later
    actions = tokens([-1.0] * 157, teacher=teacher, trajectories=trajectories)
    assert gaps_of(actions, kl_discount=discount) == pytest.approx(expected, abs=1e-12)


def test_the_gap_is_clipped_on_each_token_before_it_is_summed() -> None:
    # Gaps 5 and −3, clipped to ±2: gap_1 = −2, gap_0 = 2 − 2 = 0; clipping the sum would give 2.
    actions = tokens([-1.0, -4.0], teacher=[-6.0, -1.0])
    result = objective_of(actions, kl_clip=2.0, kl_discount=1.0)
    assert gaps_of(actions, kl_clip=2.0, kl_discount=1.0) == pytest.approx([0.0, -2.0])
    assert result.totals.num_kl_clipped.item() == 2.0
    assert result.totals.reverse_kl.item() == 5.0 - 3.0  # the metric is not clipped


def test_a_ratio_beyond_the_cap_is_capped_and_has_no_gradient() -> None:
    # Ratios 1000 and e; the advantage −1 is the worst case, where PPO's own clip does not hold.
    actions = tokens([-1.0, -1.0], teacher=[-2.0, -2.0], sampler=[-1.0 - log(1000.0), -2.0])
    result = objective_of(actions)
    result.loss.backward()
    assert result.loss.item() == pytest.approx((10.0 + exp(1.0)) / 2)
    grad = actions[0].grad
    assert grad is not None
    assert grad.tolist() == pytest.approx([0.0, exp(1.0) / 2])
    assert result.totals.num_ratio_capped.item() == 1.0
    assert result.totals.ratio.item() == pytest.approx(1000.0 + exp(1.0))


def test_a_ratio_beyond_any_float_gives_no_nan() -> None:
    actions = tokens([-1.0], teacher=[-2.0], sampler=[-9999.0])
    assert gradient_of(actions) == [0.0]


def test_a_penalty_of_zero_gives_no_gradient_at_all() -> None:
    actions = tokens([-0.1, -3.0], teacher=[-2.0, -0.5])
    assert gradient_of(actions, kl_penalty_coef=0.0) == [0.0, 0.0]


def test_totals_of_two_micro_batches_add_up_to_those_of_both() -> None:
    settings = AlgorithmSettings(kl_discount=0.5)
    whole = tokens(
        [-0.5, -1.0, -0.2], teacher=[-1.0, -0.4, -20.0], trajectories=[0, 0, 1], turns=[0, 1, 0]
    )
    first = tokens([-0.5, -1.0], teacher=[-1.0, -0.4], turns=[0, 1])
    second = tokens([-0.2], teacher=[-20.0])
    both, *parts = (
        compute_objective(*actions, settings=settings, num_actions=3, num_turns=2).totals
        for actions in (whole, first, second)
    )
    added = parts[0] + parts[1]
    for name in type(both).__slots__:
        expected = getattr(both, name).tolist()
        assert getattr(added, name).tolist() == pytest.approx(expected, abs=1e-12), name


def test_vectors_of_different_lengths_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"several shapes: \[\(1,\), \(2,\)\]"):
        tokens([-1.0, -1.0], teacher=[-1.0])
