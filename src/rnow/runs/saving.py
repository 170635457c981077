"""When a run saves what: the checkpoint to resume from, and those that the user keeps."""

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from rnow.config.settings import TrainerSettings
from rnow.errors import CheckpointError
from rnow.runs.folder import RunDirectory, package_versions


class TrainedState(Protocol):
    """What is saved: a student in training, wherever it is."""

    @property
    def arithmetic(self) -> Mapping[str, str]:
        """On what the order of sums depends: {"threads": "16", "ranks": "1"}."""
        ...

    def save_checkpoint(self, folder: Path, *, step: int, scalars: Mapping[str, Any]) -> None:
        """Write all that an update depends on, after `step` of them, and `scalars` beside it."""
        ...

    def restore(self, folder: Path) -> tuple[int, Mapping[str, Any]]:
        """Put that back; return its step and scalars."""
        ...


class Saver:
    """Saves the state after each step; `restore` puts the newest back."""

    def __init__(
        self,
        run: RunDirectory,
        *,
        state: TrainedState,
        tuning: Literal["lora", "full"],
        settings: TrainerSettings,
        num_steps: int,
        say: Callable[[str], None],
    ) -> None:
        self._run = run
        self._state = state
        self._tuning = tuning
        self._settings = settings
        self._num_steps = num_steps
        self._say = say
        self._step = 0  # updates that are done
        self._saved_at = time.monotonic()
        self._is_saved = True

    def restore(self) -> int:
        """Return the step to go on with; 0 where there is no checkpoint."""
        if not self._run.latest.exists():
            return 0
        step, scalars = self._state.restore(self._run.latest)
        if step > self._num_steps:
            raise CheckpointError(
                f"{self._run.path} has done {step} steps, and config.yml now asks for "
                f"{self._num_steps}; raise trainer.max_steps or trainer.num_epochs, or use --fresh"
            )
        self._say(f"going on with {self._run.path} after step {step} of {self._num_steps}")
        # Checkpoints from before there were ranks do not name them.
        made_with, now = {"ranks": "1", **scalars["made_with"]}, self._made_with()
        for name in sorted(made_with.keys() | now.keys()):
            if made_with.get(name) != now.get(name):
                self._say(
                    f"  {name} was {made_with.get(name)}, is {now.get(name)}: the run goes on, but "
                    "not bit for bit as it would have"
                )
        return step

    def __call__(self, step: int) -> None:
        """Save the state after `step` updates, if it is time; saved, these steps count as done."""
        self._step, self._is_saved = step, False
        is_kept = self._settings.save_step > 0 and step % self._settings.save_step == 0
        if is_kept:
            # Before `latest`: a run that is killed here makes the step again, and this with it.
            self._save(self._run.checkpoint(step), step)
            self._run.forget_checkpoints(self._settings.keep_last)
        if is_kept or step == self._num_steps or self._is_due():
            self.save_pending()

    def save_pending(self) -> None:
        """Save now what was not yet due; nothing if all is saved."""
        if self._is_saved:
            return
        self._save(self._run.latest, self._step)
        self._is_saved, self._saved_at = True, time.monotonic()
        self._run.write_state(step=self._step, num_steps=self._num_steps, finished=False)
        # Steps from here on may be taken up again from their journals; those before may not.
        gone = self._run.archive_trajectories(
            before=self._step, max_bytes=self._settings.keep_trajectories_gb * 1e9
        )
        for path in gone:
            self._say(f"{path} made room: trainer.keep_trajectories_gb is full")

    def _is_due(self) -> bool:
        if self._tuning == "lora":
            return True
        return time.monotonic() - self._saved_at >= 60 * self._settings.checkpoint_minutes

    def _save(self, folder: Path, step: int) -> None:
        config = hashlib.sha256(self._run.config_file.read_bytes()).hexdigest()
        scalars = {
            "made_with": self._made_with(),
            "packages": package_versions(),
            "config_sha256": config,
        }
        self._state.save_checkpoint(folder, step=step, scalars=scalars)

    def _made_with(self) -> dict[str, str]:
        """Return all on which the bits of a result depend, besides the run's own files."""
        versions = package_versions()
        return {
            "torch": versions["torch"],
            "transformers": versions["transformers"],
            **self._state.arithmetic,
        }
