"""pass@k: how likely at least one of k attempts at a prompt is right. Pure.

    n attempts of which c are right:   pass@k = 1 − C(n − c, k) / C(n, k)

the share of all ways to draw k of the n in which a right one is among them (arXiv 2107.03374, where
it is shown to be unbiased for n ≥ k). Metrics at one temperature share their attempts, as many as
the largest k of them; a metric at a temperature of its own has attempts of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from rnow.errors import UsageError


@dataclass(frozen=True, slots=True, order=True)
class PassAtK:
    """A metric: pass@`k` of attempts sampled at `temperature`; 0 is greedy."""

    k: int
    temperature: float


GREEDY = (PassAtK(1, 0.0),)


def choose_passes(wanted: Sequence[tuple[PassAtK, bool]]) -> tuple[PassAtK, ...]:
    """Return the metrics that are on, the smallest k first.

    Raises UsageError if none is, or for several attempts that would all be the same.
    """
    passes = tuple(sorted(metric for metric, is_on in wanted if is_on))
    if not passes:
        raise UsageError("At least one pass@k metric must be enabled")
    for metric in passes:
        if metric.k > 1 and metric.temperature == 0:
            raise UsageError(
                f"--pass{metric.k}-temp is 0, where all {metric.k} attempts are the same; "
                "give a temperature above 0"
            )
    return passes


def pass_at_k(num: int, num_correct: int, *, k: int) -> float:
    """Return the estimate from `num` attempts; there must be `k` of them at least.

    >>> pass_at_k(4, 1, k=2)
    0.5
    """
    if not 0 <= num_correct <= num or not 1 <= k <= num:
        raise ValueError(f"{num_correct} right of {num} attempts say nothing about pass@{k}")
    return 1 - comb(num - num_correct, k) / comb(num, k)


def temperatures(passes: Sequence[PassAtK]) -> tuple[float, ...]:
    """Return the temperature of each attempt at a prompt, in the order of attempts."""
    return tuple(
        temperature
        for temperature in dict.fromkeys(metric.temperature for metric in passes)
        for _ in range(max(other.k for other in passes if other.temperature == temperature))
    )


def attempts_of(metric: PassAtK, passes: Sequence[PassAtK]) -> frozenset[int]:
    """Return the attempts from which `metric` is estimated, as they are counted from 0."""
    return frozenset(
        attempt
        for attempt, temperature in enumerate(temperatures(passes))
        if temperature == metric.temperature
    )
