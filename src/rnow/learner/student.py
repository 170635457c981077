"""What a run trains, as one thing: network, optimizer, and what is written of them.

    update(batch)   probe_logprobs(ids)   save(folder)   save_checkpoint(folder)   restore(folder)
    swap()

The same six whether it is in the run's own process or spread over ranks (training/ranks.py).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rnow.config.settings import Config
from rnow.learner.checkpoint import (
    Checkpoint,
    load_checkpoint,
    num_threads,
    save_checkpoint,
)
from rnow.learner.policy import Policy
from rnow.learner.trainer import OnLogprobs, Trainer
from rnow.records import Batch, FloatArray

if TYPE_CHECKING:
    from rnow.learner.ranks.group import Ranks


class Student:
    """Policy and trainer, which share the weights. Made by `Student.load`."""

    def __init__(self, policy: Policy, trainer: Trainer, *, ranks: "Ranks | None" = None) -> None:
        self.policy = policy
        self.trainer = trainer
        self._ranks = ranks

    @classmethod
    def load(
        cls,
        config: Config,
        *,
        student: Path,
        device: Literal["cuda", "cpu"],
        num_steps: int,
        on_bad_numbers: Callable[[Batch, str], None],
        on_logprobs: OnLogprobs,
        ranks: "Ranks | None" = None,
    ) -> "Student":
        """Load the network from the folder `student`; takes seconds to minutes.

        `ranks`: the processes of which this is one, where several train together.
        """
        policy = Policy.load(
            student,
            config.model,
            device=device,
            seed=config.seed,
            activation_checkpointing=config.trainer.activation_checkpointing,
            window=config.rollout.max_context_window,
            ranks=ranks,
        )
        trainer = Trainer(
            policy,
            settings=config.trainer,
            algorithm=config.algorithm,
            num_steps=num_steps,
            on_bad_numbers=on_bad_numbers,
            on_logprobs=on_logprobs,
            ranks=ranks,
        )
        return cls(policy, trainer, ranks=ranks)

    def update(self, batch: Batch) -> dict[str, float]:
        """As `Trainer.update`."""
        return self.trainer.update(batch)

    def probe_logprobs(self, token_ids: Sequence[int], *, start: int) -> FloatArray:
        """As `Trainer.probe_logprobs`."""
        return self.trainer.probe_logprobs(token_ids, start=start)

    def save(self, folder: Path, *, adapter_dtype: str | None = None) -> None:
        """As `Policy.save`; of several ranks the first one writes."""
        is_writer = self._ranks is None or self._ranks.rank == 0
        self.policy.save(folder, adapter_dtype=adapter_dtype, is_writer=is_writer)

    def swap(self) -> None:
        """As `Trainer.swap`."""
        self.trainer.swap()

    def save_checkpoint(self, folder: Path, *, step: int, scalars: Mapping[str, Any]) -> None:
        """Write all that an update depends on, after `step` of them, and `scalars` beside it."""
        tensors, counters = self.trainer.state()
        checkpoint = Checkpoint(
            step=step,
            weights=self.policy.trainable_state(),
            optimizer=tensors,
            scalars={"trainer": counters, **scalars},
        )
        if self._ranks is not None and self._ranks.is_cut(checkpoint.weights.values()):
            from rnow.learner.ranks.checkpoint import save_parts

            save_parts(folder, checkpoint, self._ranks)
        elif self._ranks is None or self._ranks.rank == 0:
            save_checkpoint(folder, checkpoint)

    def restore(self, folder: Path) -> tuple[int, Mapping[str, Any]]:
        """Put back what `save_checkpoint` wrote; return its step and scalars.

        Raises CheckpointError where it is not whole, or of another student.
        """
        weights = self.policy.trainable_state()
        if self._ranks is not None and self._ranks.is_cut(weights.values()):
            from rnow.learner.ranks.checkpoint import load_parts

            checkpoint = load_parts(folder, weights, self._ranks)
        else:
            checkpoint = load_checkpoint(folder)
        self.policy.load_trainable_state(checkpoint.weights)
        self.trainer.load_state(checkpoint.optimizer, checkpoint.scalars["trainer"])
        if self._ranks is not None:
            self._ranks.check_alike(self.policy.trainable_state(), when=f"in {folder}")
        return checkpoint.step, checkpoint.scalars

    @property
    def arithmetic(self) -> dict[str, str]:
        """On what the order of sums depends, besides versions."""
        return {
            "threads": str(num_threads()),
            "ranks": "1" if self._ranks is None else self._ranks.name,
        }
