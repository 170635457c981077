"""One update from a batch that was kept because its numbers were not finite: `rnow replay FILE`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from rnow.commands.arguments import make_console
from rnow.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of the update, which nothing keeps."""

    step: int  # of the batch
    weights_step: int  # updates in the weights that it was tried on
    num_moves_between: int  # updates that moved weights, between batch and weights; 0: what it met
    problem: str | None  # which numbers were not finite; None: all were
    metrics: Mapping[str, float]


def replay(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A batch that a run kept: runs/NAME/bad/FILE.jsonl in its project."
        ),
    ],
) -> None:
    """Repeat one update that a run left out because its numbers were not finite.

    Nothing is written. Exit code 4 if they are not finite again.

    Example: rnow replay runs/demo/bad/000012.jsonl
    """
    replayed = replay_update(file)
    console = make_console()
    console.print(
        f"the batch of step {replayed.step}, on the weights after {replayed.weights_step} updates"
    )
    if replayed.num_moves_between:
        console.print(
            f"  not what it met, which is not kept: {replayed.num_moves_between} updates moved the "
            "weights in between",
            soft_wrap=True,
        )
    for name, value in sorted(replayed.metrics.items()):
        console.print(f"  {name} {value:.6g}")
    if replayed.problem is not None:
        console.print(f"not finite: {replayed.problem}", soft_wrap=True)
        raise typer.Exit(4)
    console.print("all numbers are finite")


def replay_update(file: Path) -> Replayed:
    """Make the update of runs/NAME/bad/FILE with that run's config, on the weights that it met.

    Where these were not kept, on the run's newest checkpoint, older or newer than the batch. With
    no update between the two that moved weights, that has the very ones.
    """
    from rnow.config.settings import Config
    from rnow.learner.checkpoint import load_checkpoint
    from rnow.learner.policy import Policy
    from rnow.learner.trainer import Trainer
    from rnow.plan.model_files import fetch_model, find_model
    from rnow.records import Batch
    from rnow.runs.bad import weights_of
    from rnow.runs.folder import RunDirectory
    from rnow.runs.journal import read_journal

    run = RunDirectory(file.absolute().parent.parent)
    scored = read_journal(file)
    if not scored or not run.config_file.exists():
        raise UsageError(f"{file} is not a batch that a run kept; they are runs/NAME/bad/*.jsonl")
    config = Config.model_validate(run.read_config())
    project = run.path.parent.parent
    policy = Policy.load(
        fetch_model(find_model("model.path", config.model.path, project=project)),
        config.model,
        seed=config.seed,
        activation_checkpointing=config.trainer.activation_checkpointing,
        window=config.rollout.max_context_window,
    )
    problems: list[str] = []
    trainer = Trainer(
        policy,
        settings=config.trainer,
        algorithm=config.algorithm,
        num_steps=run.state().get("num_steps", 1),
        on_bad_numbers=lambda _, reason: problems.append(reason),
    )
    weights_step = 0
    weights = next((path for path in (weights_of(file), run.latest) if path.exists()), None)
    if weights is not None:
        checkpoint = load_checkpoint(weights)
        policy.load_trainable_state(checkpoint.weights)
        # This one is looked at, not the third in a row.
        trainer.load_state(checkpoint.optimizer, {"num_bad_updates": 0})
        weights_step = checkpoint.step
    step = scored[0].trajectory.id.step
    metrics = trainer.update(Batch(step=step, scored=scored))
    return Replayed(
        step=step,
        weights_step=weights_step,
        num_moves_between=count_moves(run.read_metrics(), step, weights_step),
        problem=problems[0] if problems else None,
        metrics=metrics,
    )


def count_moves(lines: Iterable[Mapping[str, Any]], step: int, weights_step: int) -> int:
    """Return how many updates lie between two states of the weights and moved them.

    `step`, `weights_step`: updates before each, in either order; `lines`: the run's metrics.
    """
    first, end = sorted((step, weights_step))
    return sum(first <= line["step"] < end and not line["trainer/skipped"] for line in lines)
