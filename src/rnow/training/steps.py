"""Which prompts make which step of a run, and how many steps there are."""

from collections.abc import Sequence

import numpy as np

from rnow.config.settings import Config
from rnow.records import Prompt, derive_seed


def prompts_by_step(config: Config, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Return the prompts of every step of the run."""
    order = prompt_order(
        len(prompts),
        batch_size=config.data.batch_size,
        num_epochs=config.trainer.num_epochs,
        seed=config.seed,
    )
    return [[prompts[index] for index in indices] for indices in order][: config.trainer.max_steps]


def prompt_order(
    num_prompts: int, *, batch_size: int, num_epochs: int, seed: int
) -> tuple[tuple[int, ...], ...]:
    """Return the prompt indices of every step: each epoch shuffled anew, its last batch short.

    An epoch's order depends on (seed, epoch) and on nothing else. It is the order of raw numbers of
    a Philox stream, which numpy keeps the same for ever; of its shuffles it does not promise that.

    >>> [len(batch) for batch in prompt_order(5, batch_size=2, num_epochs=1, seed=0)]
    [2, 2, 1]
    """
    steps: list[tuple[int, ...]] = []
    for epoch in range(num_epochs):
        stream = np.random.Philox(key=derive_seed(seed, "prompt order", epoch))
        order = np.argsort(stream.random_raw(num_prompts)).tolist()
        steps += [tuple(order[at : at + batch_size]) for at in range(0, num_prompts, batch_size)]
    return tuple(steps)
