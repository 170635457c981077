"""Batches whose numbers were not finite, kept so that the update can be looked into."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from rnow.records import Batch
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import Journal

# A run stops at three bad updates in a row; those between good ones must not fill the disk.
KEPT_WEIGHTS = 3


def keep_bad_batch(
    run: RunDirectory, batch: Batch, reason: str, *, save_weights: Callable[[Path], None] | None
) -> str:
    """Keep a batch, with the reason and its weights beside it; return what to tell the user.

    `save_weights` None: all weights of a network are too much to keep, and `checkpoints/latest`
    has to do.
    """
    path = run.bad / f"{batch.step:06d}-{time.time_ns()}.jsonl"
    journal = Journal(path)
    for scored in batch.scored:
        journal.append(scored)
    journal.close()
    if save_weights is not None:
        save_weights(weights_of(path))
        forget_old_weights(run)
    command = f"rnow replay {path}"
    Path(f"{path}.reason").write_text(f"{reason}\n{command}\n", encoding="utf-8")
    return f"{reason}; no weight moved. To make just this update again: {command}"


def forget_old_weights(run: RunDirectory) -> None:
    for folder in sorted(run.bad.glob("*.weights"))[:-KEPT_WEIGHTS]:
        shutil.rmtree(folder)


def weights_of(batch_file: Path) -> Path:
    """Return where the weights lie that a kept batch met."""
    return batch_file.with_suffix(".weights")
