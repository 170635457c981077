"""What a step's gaps say with what certainty: intervals at 95 % over its prompts. Pure.

The rollouts of one prompt are alike, so a prompt is one draw, not each of its rollouts.

How often the teacher itself would be right is estimated from the student's graded rollouts: each
counts by w = exp(−Σ gap), how much likelier the teacher finds it than the student did. What tools
said stands in both and cancels. Where few rollouts have most of the weight, nothing is said.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from rnow.records import ScoredTrajectory

MIN_OF_EACH = 5  # right answers, and wrong ones
MIN_EFFECTIVE = 0.5  # of the graded rollouts: 1 / Σ w² with weights that add up to 1

Vector = NDArray[np.float64]


def gap_metrics(
    scored: Sequence[ScoredTrajectory], verdicts: Sequence[bool | None]
) -> dict[str, float]:
    """Return the intervals of a step; nothing where there is too little to say one."""
    prompts = [one.trajectory.id.prompt for one in scored]
    totals = np.array([one.mean_gap * one.trajectory.num_actions for one in scored], dtype=float)
    tokens = np.array([one.trajectory.num_actions for one in scored], dtype=float)
    found = {}
    if len(set(prompts)) > 1:
        rest = totals - tokens * totals.sum() / tokens.sum()
        found["reverse_kl/within"] = _half_width(rest / tokens.sum(), prompts)
    graded = [at for at, right in enumerate(verdicts) if right is not None]
    right = np.array([bool(verdicts[at]) for at in graded], dtype=float)
    if min(right.sum(), len(right) - right.sum()) < MIN_OF_EACH:
        return found
    of = [prompts[at] for at in graded]
    return found | _gain(-totals[graded], right, of)


def _gain(log_weights: Vector, right: Vector, prompts: Sequence[int]) -> dict[str, float]:
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    if len(set(prompts)) < 2 or 1 / (weights**2).sum() < MIN_EFFECTIVE * len(right):
        return {}
    teacher, student = float(weights @ right), float(right.mean())
    rest = weights * (right - teacher) - (right - student) / len(right)
    return {"teacher/gain": teacher - student, "teacher/gain_within": _half_width(rest, prompts)}


def _half_width(rest: Vector, prompts: Sequence[int]) -> float:
    """Return half of the interval of a sum whose draws are off by `rest`, prompt by prompt."""
    _, which = np.unique(prompts, return_inverse=True)
    sums = np.bincount(which, weights=rest)
    num = len(sums)
    return t_quantile(num - 1) * math.sqrt(num / (num - 1) * float(sums @ sums))


def t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, within 2 % from 3 degrees of freedom on.

    Expanded about the normal's (Abramowitz and Stegun, 26.7.5); 1 and 2 by their own formulas.
    """
    if freedom == 1:
        return 12.706
    if freedom == 2:
        return 4.303
    z = NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))
