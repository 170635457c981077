"""Python's garbage collector, made rare while rollouts run.

Hundreds of rollouts make objects faster than they end, so that the collector runs often and finds
nothing: a quarter of the controller's time, measured at 512 rollouts. What is in cycles, and so
waits for it, is small: tensors and pages are not.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# New objects before a young collection, and how many of these before one of the next generation.
THRESHOLDS = (50_000, 20, 20)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Collect seldom while the block runs, and never what was there before it."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
