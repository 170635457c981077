"""What one update minimizes: pure tensor maths over action tokens, no network.

The student pays for what it likes more than the teacher does. Over the N action tokens t of the
whole batch:

    ratio_t = exp(policy_logprobs_t − sampler_logprobs_t), capped at ratio_max
    gap_t   = Σ_{j ≥ t} kl_discount^(j − t) · clip(reverse_kl_j, ±kl_clip)   over action tokens only
    A_t     = −kl_penalty_coef · gap_t                                       detached
    loss    = −1/N · Σ_t min(ratio_t · A_t, clip(ratio_t, 1 − clip_low, 1 + clip_high) · A_t)

`importance_sampling` drops the min and its clip. In pure distillation the advantage of a reward is
exactly 0, so there is no term for it; training on rewards will add one to A_t and nothing else.

Everything here is a flat vector with one entry for each action token, in float64: tool text is not
in it, so a discount cannot count it, and neither loss nor metric depends on how a batch was cut
beyond the network's own rounding.
"""

from dataclasses import dataclass, fields
from math import log

import torch
from torch import Tensor

from rnow.config.settings import AlgorithmSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionTokens:
    """Action tokens of one micro-batch; those of one trajectory stand together, in their order.

    ActionTokens(sampler_logprobs=[-0.3, -0.1], teacher_logprobs=[-0.2, -2.0],
                 trajectory_index=[0, 0], turn_index=[0, 1])
    """

    sampler_logprobs: Tensor  # [actions] nats
    teacher_logprobs: Tensor  # [actions] nats
    trajectory_index: Tensor  # [actions] int64, any number that tells trajectories apart
    turn_index: Tensor  # [actions] int64, from 0

    def __post_init__(self) -> None:
        shapes = {tuple(vector.shape) for vector in self._vectors().values()}
        assert len(shapes) == 1, f"action tokens in several shapes: {sorted(shapes)}"

    def __len__(self) -> int:
        return len(self.turn_index)

    def to(self, device: torch.device) -> "ActionTokens":
        return ActionTokens(**{name: each.to(device) for name, each in self._vectors().items()})

    def _vectors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTotals:
    """Totals over action tokens; those of two micro-batches, added, are those of both. Detached."""

    loss: Tensor  # [] already divided by the N of the whole batch
    reverse_kl: Tensor  # [] nats
    mismatch_kl: Tensor  # [] nats
    ratio: Tensor  # [] uncapped importance ratios
    num_clipped: Tensor  # [] tokens where PPO's clip took the gradient away
    num_kl_clipped: Tensor  # [] tokens whose own reverse KL was beyond ±kl_clip
    num_ratio_capped: Tensor  # [] tokens whose ratio was above ratio_max
    max_advantage: Tensor  # [] the greatest |A_t|: the one entry that is a maximum, not a sum
    turn_reverse_kl: Tensor  # [turns] nats
    turn_actions: Tensor  # [turns] number of action tokens

    def __add__(self, other: "LossTotals") -> "LossTotals":
        names = [field.name for field in fields(self)]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        sums["max_advantage"] = torch.maximum(self.max_advantage, other.max_advantage)
        return LossTotals(**sums)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What one micro-batch adds to the step."""

    loss: Tensor  # [] call backward() on this
    totals: LossTotals


def compute_objective(
    policy_logprobs: Tensor,
    tokens: ActionTokens,
    *,
    settings: AlgorithmSettings,
    num_actions: int,
    num_turns: int,
) -> Objective:
    """Return loss and totals of one micro-batch.

    `policy_logprobs` [actions] are in nats, from the network that is trained; they carry the
    gradient.

    `num_actions` is N, counted over the whole batch, and `num_turns` its greatest number of turns:
    given from outside, because a micro-batch does not know what it is a part of.
    """
    assert policy_logprobs.shape == tokens.turn_index.shape, "one log-probability a token"
    policy_logprobs = policy_logprobs.double()
    log_ratio = policy_logprobs - tokens.sampler_logprobs.double()
    reverse_kl = policy_logprobs.detach() - tokens.teacher_logprobs.double()
    gap = _discounted_sum(
        reverse_kl.clamp(-settings.kl_clip, settings.kl_clip),
        tokens.trajectory_index,
        discount=settings.kl_discount,
    )
    advantages = -settings.kl_penalty_coef * gap

    # The cap goes on the logarithm: exp of a great one is inf, and its backward 0 · inf = NaN.
    ratio = log_ratio.clamp(max=log(settings.ratio_max)).exp()
    objective = ratio * advantages
    num_clipped = log_ratio.new_zeros(())
    if settings.loss_fn == "ppo":
        clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high) * advantages
        num_clipped = (clipped < objective).sum().double()
        objective = torch.minimum(objective, clipped)
    loss = -objective.sum() / num_actions

    log_ratio = log_ratio.detach()
    per_turn = reverse_kl.new_zeros(num_turns)
    totals = LossTotals(
        loss=loss.detach(),
        reverse_kl=reverse_kl.sum(),
        mismatch_kl=(log_ratio.expm1() - log_ratio).sum(),
        ratio=log_ratio.exp().sum(),
        num_clipped=num_clipped,
        num_kl_clipped=(reverse_kl.abs() > settings.kl_clip).sum().double(),
        num_ratio_capped=(log_ratio > log(settings.ratio_max)).sum().double(),
        max_advantage=advantages.abs().max(),
        turn_reverse_kl=per_turn.index_add(0, tokens.turn_index, reverse_kl),
        turn_actions=per_turn.index_add(0, tokens.turn_index, torch.ones_like(reverse_kl)),
    )
    return Objective(loss=loss, totals=totals)


def _discounted_sum(values: Tensor, trajectory_index: Tensor, *, discount: float) -> Tensor:
    """Return Σ_{j ≥ t} discount^(j − t) · values_j, j within t's trajectory.

    By doubling, since a loop over tokens would be a loop over tens of thousands: once every entry
    holds the sum of its next `span` values, adding discount^span times the entry `span` further on
    makes that 2 · span.

        span 1:  v0       v1       v2       v3
        span 2:  v0+d·v1  v1+d·v2  v2+d·v3  v3            then + d² · the entry two further on, …
    """
    sums = values
    span = 1
    while span < len(values) and discount**span > 0.0:
        same = trajectory_index[span:] == trajectory_index[:-span]
        if not same.any():
            break
        later = torch.where(same, sums[span:], 0.0) * discount**span
        sums = torch.cat([sums[:-span] + later, sums[-span:]])
        span *= 2
    return sums
