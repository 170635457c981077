"""`rnow status`, `stop` and `replay`: the commands about runs that there are."""

from pathlib import Path
from typing import Annotated

import typer

from rnow.commands.arguments import Dir, find_project, make_console
from rnow.errors import UsageError


def status(
    project: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="Project (.).")] = None,
    directory: Dir = None,
) -> None:
    """Show a project's runs on this machine, and what a live one waits for right now."""
    from rnow.commands.status import describe_runs

    folder, _ = find_project(None if project is None else [str(project)], directory)
    for line in describe_runs(folder):
        typer.echo(line)


def stop(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="runs/NAME of a project.")],
    limit_s: Annotated[
        float, typer.Option("--timeout", min=0, help="Seconds to wait for its end.")
    ] = 600.0,
) -> None:
    """Ask a run to save and end; say how to go on."""
    from rnow.commands.status import stop_run
    from rnow.runs.folder import RunDirectory

    if not run_folder.is_dir():
        raise UsageError(f"{run_folder} is not a run's folder; to see them: rnow status")
    typer.echo(stop_run(RunDirectory(run_folder), limit_s=limit_s, say=typer.echo))


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="runs/NAME/bad/FILE.jsonl")],
) -> None:
    """Make one update from a kept batch; exit code 4 if its numbers are not finite again."""
    from rnow.commands.replay import replay_update

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
