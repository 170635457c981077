"""Which prompts make which step of a run, and how many steps there are."""

from collections.abc import Sequence

import numpy as np

from rnow.config.settings import Config
from rnow.records import Prompt, derive_seed


def prompts_by_step(config: Config, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Return the prompts of every step of the run: each epoch shuffled anew, its last batch short.

    An epoch's order depends on (seed, epoch) and on nothing else. It is the order of raw numbers of
    a Philox stream, which numpy keeps the same for ever; of its shuffles it does not promise that.
    """
    steps: list[list[Prompt]] = []
    size = config.data.batch_size
    for epoch in range(config.trainer.num_epochs):
        stream = np.random.Philox(key=derive_seed(config.seed, "prompt order", epoch))
        shuffled = [prompts[index] for index in np.argsort(stream.random_raw(len(prompts)))]
        steps += [shuffled[at : at + size] for at in range(0, len(prompts), size)]
    return steps[: config.trainer.max_steps]
