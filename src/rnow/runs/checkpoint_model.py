"""A checkpoint of a run -> the adapter or the model that an engine loads.

A checkpoint holds what training changes, under the names of the network in training; the network
is built once more from the student and the run's own settings, and saves itself.
"""

from pathlib import Path

from rnow.config.settings import Config
from rnow.learner.checkpoint import load_checkpoint
from rnow.learner.policy import Policy
from rnow.runs.folder import RunDirectory
from rnow.runs.model_folder import copy_tokenizer


def write_checkpoint_model(
    folder: Path, *, checkpoint: Path, run: RunDirectory, student: Path
) -> None:
    """Write `checkpoint` to `folder`, with the tokenizer of `student`, on which it was trained.

    Raises CheckpointError where it is not whole, or of another student.
    """
    config = Config.model_validate(run.read_config())
    policy = Policy.load(
        student,
        config.model,
        seed=config.seed,
        activation_checkpointing=False,
        device="cpu",
        window=config.rollout.max_context_window,
    )
    policy.load_trainable_state(load_checkpoint(checkpoint).weights)
    folder.mkdir(parents=True, exist_ok=True)
    policy.save(folder)
    copy_tokenizer(student, folder)
