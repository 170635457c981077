"""Which rank takes which micro-batches, so that all are done at about the same time.

The batch is cut into micro-batches as for one process, and those are dealt: what a rank computes
depends on the batch alone, never on who was quicker.
"""

from collections.abc import Sequence

from rnow.learner.packing import EVEN_TOKENS, MicroBatch


def cost(micro_batch: MicroBatch) -> int:
    """Return how long a micro-batch takes: the sum of n · 48,000 + n² over sequences of n tokens.

    n² is the sum of 2 · position + 1, so it does not matter how sequences lie in the micro-batch.
    """
    positions = micro_batch.position_ids
    return positions.numel() * (EVEN_TOKENS + 1) + 2 * int(positions.sum())


def deal(costs: Sequence[int], num_ranks: int) -> tuple[tuple[int, ...], ...]:
    """Return the indices that each rank takes, in their order.

    The dearest first, each to the rank that has least so far; of equals, the first.

    >>> deal([5, 4, 3, 3], 2)
    ((0, 3), (1, 2))
    """
    hands: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        rank = loads.index(min(loads))
        hands[rank].append(index)
        loads[rank] += costs[index]
    return tuple(tuple(sorted(hand)) for hand in hands)
