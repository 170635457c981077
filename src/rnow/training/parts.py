"""The student's network in this process, with what moves it and what saves it."""

from dataclasses import dataclass
from pathlib import Path

from rnow.config.settings import Config
from rnow.learner.policy import Policy
from rnow.learner.trainer import Trainer
from rnow.runs.folder import RunDirectory
from rnow.runs.saving import Saver


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What a run trains: three parts that share the weights."""

    policy: Policy
    trainer: Trainer
    saver: Saver

    @classmethod
    def load(
        cls, config: Config, *, student: Path, device: str, run: RunDirectory, num_steps: int
    ) -> "Learner":
        """Load the network from the folder `student`; takes seconds to minutes."""
        policy = Policy.load(
            student,
            config.model,
            device=device,
            seed=config.seed,
            activation_checkpointing=config.trainer.activation_checkpointing,
        )
        saver = Saver(run, policy=policy, settings=config.trainer, num_steps=num_steps)
        trainer = Trainer(
            policy,
            settings=config.trainer,
            algorithm=config.algorithm,
            num_steps=num_steps,
            on_bad_numbers=saver.keep_bad_batch,
        )
        return cls(policy=policy, trainer=trainer, saver=saver)
