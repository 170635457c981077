"""When a run saves what: the checkpoint to resume from, those that the user keeps, bad batches."""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rnow.config.settings import TrainerSettings
from rnow.errors import CheckpointError
from rnow.runs.journal import Journal
from rnow.learner.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from rnow.learner.policy import Policy
from rnow.learner.trainer import Trainer
from rnow.records import Batch
from rnow.runs.folder import (RunDirectory, package_versions)

# A run stops at three bad updates in a row; those between good ones must not fill the disk.
KEPT_WEIGHTS = 3


class Saver:
    """Saves the state after each step; `restore` puts the newest back into policy and trainer."""

    def __init__(
        self, run: RunDirectory, *, policy: Policy, settings: TrainerSettings, num_steps: int
    ) -> None:
        self._run = run
        self._policy = policy
        self._settings = settings
        self._num_steps = num_steps
        self._trainer: Trainer | None = None
        self._say: Callable[[str], None] = print
        self._step = 0  # updates that are done
        self._saved_at = time.monotonic()
        self._is_saved = True

    def restore(self, trainer: Trainer, *, say: Callable[[str], None]) -> int:
        """Return the step to go on with; 0 where there is no checkpoint."""
        self._trainer, self._say = trainer, say
        if not self._run.latest.exists():
            return 0
        checkpoint = load_checkpoint(self._run.latest)
        self._policy.load_trainable_state(checkpoint.weights)
        trainer.load_state(checkpoint.optimizer, checkpoint.scalars["trainer"])
        if checkpoint.step > self._num_steps:
            raise CheckpointError(
                f"{self._run.path} has done {checkpoint.step} steps, and config.yml now asks for "
                f"{self._num_steps}; raise trainer.max_steps or trainer.num_epochs, or use --fresh"
            )
        say(f"going on with {self._run.path} after step {checkpoint.step} of {self._num_steps}")
        made_with, now = checkpoint.scalars["made_with"], _made_with()
        for name in sorted(made_with.keys() | now.keys()):
            if made_with.get(name) != now.get(name):
                say(
                    f"  {name} was {made_with.get(name)}, is {now.get(name)}: the run goes on, but "
                    "not bit for bit as it would have"
                )
        return checkpoint.step

    def __call__(self, step: int) -> None:
        """Save the state after `step` updates, if it is time; saved, these steps count as done."""
        self._step, self._is_saved = step, False
        is_kept = self._settings.save_step > 0 and step % self._settings.save_step == 0
        if is_kept:
            # Before `latest`: a run that is killed here makes the step again, and this with it.
            save_checkpoint(self._run.checkpoint(step), self._checkpoint(step))
            self._run.forget_checkpoints(self._settings.keep_last)
        if is_kept or step == self._num_steps or self._is_due():
            self.save_pending()

    def save_pending(self) -> None:
        """Save now what was not yet due; nothing if all is saved."""
        if self._is_saved:
            return
        save_checkpoint(self._run.latest, self._checkpoint(self._step))
        self._is_saved, self._saved_at = True, time.monotonic()
        self._run.write_state(step=self._step, num_steps=self._num_steps, finished=False)
        # Steps from here on may be taken up again from their journals; those before may not.
        gone = self._run.archive_trajectories(
            before=self._step, max_bytes=self._settings.keep_trajectories_gb * 1e9
        )
        for path in gone:
            self._say(f"{path} made room: trainer.keep_trajectories_gb is full")

    def _is_due(self) -> bool:
        if self._policy.tuning == "lora":
            return True
        return time.monotonic() - self._saved_at >= 60 * self._settings.checkpoint_minutes

    def _checkpoint(self, step: int) -> Checkpoint:
        assert self._trainer is not None, "restore comes first"
        tensors, scalars = self._trainer.state()
        return Checkpoint(
            step=step,
            weights=self._policy.trainable_state(),
            optimizer=tensors,
            scalars={
                "trainer": scalars,
                "made_with": _made_with(),
                "packages": package_versions(),
                "config_sha256": hashlib.sha256(self._run.config_file.read_bytes()).hexdigest(),
            },
        )

    def keep_bad_batch(self, batch: Batch, reason: str) -> None:
        """Keep a batch whose numbers were not finite, with the reason and its weights beside it.

        All weights of a network are too much to keep: there `checkpoints/latest` has to do.
        """
        path = self._run.bad / f"{batch.step:06d}-{time.time_ns()}.jsonl"
        journal = Journal(path)
        for scored in batch.scored:
            journal.append(scored)
        journal.close()
        if self._policy.tuning == "lora":
            save_checkpoint(weights_of(path), self._checkpoint(batch.step))
            for folder in sorted(self._run.bad.glob("*.weights"))[:-KEPT_WEIGHTS]:
                shutil.rmtree(folder)
        command = f"rnow replay {path}"
        Path(f"{path}.reason").write_text(f"{reason}\n{command}\n", encoding="utf-8")
        self._say(f"{reason}; no weight moved. To make just this update again: {command}")


def weights_of(batch_file: Path) -> Path:
    """Return where the weights lie that a kept batch met."""
    return batch_file.with_suffix(".weights")


def _made_with() -> dict[str, str]:
    """Return all on which the bits of a result depend, besides the run's own files."""
    versions = package_versions()
    return {
        "torch": versions["torch"],
        "transformers": versions["transformers"],
        "threads": str(torch.get_num_threads()),
    }
