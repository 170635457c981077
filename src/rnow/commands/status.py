"""`rnow status` and `rnow stop`: a project's runs as another process sees them."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rnow.commands.arguments import Dir, RunFolder, find_project, make_console
from rnow.commands.hosted import Yes, hosted_option
from rnow.errors import CheckpointError, DeadlineError, UsageError

if TYPE_CHECKING:
    from rnow.runs.folder import RunDirectory

SILENT_AFTER_S = 10.0
LOOK_EVERY_S = 0.1


def status(
    project: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="The project's folder, or a run's; without it the current one."
        ),
    ] = None,
    directory: Dir = None,
    watch: Annotated[
        str | None,
        typer.Option(
            "--watch",
            metavar="RUN",
            help="Show how the run of that name, or in that folder, goes on, until it ends; q "
            "looks away. Without a terminal: a line a step.",
        ),
    ] = None,
) -> None:
    """Show a project's runs on this machine, and what a live one waits for right now.

    Example: rnow status my-project
    """
    folder, _ = find_project(None if project is None else [str(project)], directory)
    if watch is not None:
        from rnow.commands.watch import find_run, watch_run
        from rnow.runtime.main_task import run_main

        run = find_run(watch, folder)
        run_main(watch_run(run, make_console()))
        typer.echo("\n".join(_describe(run)))
        return
    for line in describe_runs(folder):
        typer.echo(line)


def stop(
    run_folder: RunFolder,
    limit_s: Annotated[
        float,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=0,
            help="How long to wait for the run's end before giving up; the run goes on to its end.",
        ),
    ] = 600.0,
    yes: Yes = False,
    save_model: Annotated[bool, hosted_option("--save-model")] = False,
) -> None:
    """Ask a run to save and end; say how to go on with it.

    Example: rnow stop demo
    """
    from rnow.runs.folder import RunDirectory

    if not run_folder.is_dir():
        raise UsageError(f"{run_folder} is not a run's folder; to see them: rnow status")
    typer.echo(stop_run(RunDirectory(run_folder), limit_s=limit_s, say=typer.echo))


def describe_runs(project: Path) -> list[str]:
    """Return a line for each run of the project, or for the run whose folder it is, and for a live
    one what it waits for."""
    from rnow.runs.folder import RunDirectory

    states = [*project.glob("state.json"), *sorted((project / "runs").glob("*/state.json"))]
    runs = [RunDirectory(file.parent) for file in states]
    if not runs:
        return [f"there are no runs in {project / 'runs'}; to begin one: rnow run {project}"]
    return [line for run in runs for line in _describe_all(run)]


def stop_run(run: "RunDirectory", *, limit_s: float, say: Callable[[str], None]) -> str:
    """Ask the holder of a run to save and end, wait until it has; return how to go on.

    Raises UsageError where nothing runs, DeadlineError where it has not ended within `limit_s`.
    """
    holder = run.holder()
    if holder is None:
        raise UsageError(f"nothing runs in {run.path}; to see the runs of a project: rnow status")
    if holder.get("host") != socket.gethostname():
        raise UsageError(
            f"the run in {run.path} is on {holder.get('host')}; "
            f"stop it there: kill -TERM {holder.get('pid')}"
        )
    pid = int(holder["pid"])
    os.kill(pid, signal.SIGTERM)
    say(f"asked process {pid} to stop: an update in progress ends and is saved first")
    started = time.monotonic()
    while run.holder() is not None:
        if time.monotonic() - started > limit_s:
            raise DeadlineError(
                f"the end of process {pid} has waited {limit_s:g} s. What it waits for: rnow "
                f"status. To end it at once: kill -KILL {pid}; only rollouts in flight are lost"
            )
        time.sleep(LOOK_EVERY_S)
    return _at_rest(run)


def _describe_all(run: "RunDirectory") -> list[str]:
    """A run with damaged records says so, and hides no other."""
    lines: list[str] = []
    try:
        lines += _describe(run)
        lines += _diagnoses(run)
    except CheckpointError as error:
        lines.append(f"  {error}" if lines else f"{run.path}: {error}")
    return lines


def _describe(run: "RunDirectory") -> list[str]:
    from rnow.training.view import ahead_text

    holder = run.holder()
    if holder is None:
        return [_at_rest(run)]
    who = f"{run.path}: running, pid {holder.get('pid')} on {holder.get('host')}"
    try:
        status = json.loads(run.status_file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return [f"{who}, starting"]
    silent_s = time.time() - status["time"]
    lines = [f"{who}: {_stage(status)}"]
    lines += [f"  {text}" for text in [ahead_text(status)] if text]
    if silent_s > SILENT_AFTER_S:
        lines.append(
            f"  has said nothing for {silent_s:.0f} s; where it stands: {run.controller_log}"
        )
    lines += [f"  waits for {_wait(wait)}" for wait in status["waits"]]
    more = status["num_waits"] - len(status["waits"])
    return [*lines, f"  and for {more} more"] if more > 0 else lines


def _diagnoses(run: "RunDirectory") -> list[str]:
    from rnow.reports.diagnoses import diagnose
    from rnow.reports.evidence import read_evidence

    if not run.config_file.is_file():  # nothing was begun there
        return []
    return [f"  wrong: {found.sentence}" for found in diagnose(read_evidence(run))]


def _stage(status: Mapping[str, Any]) -> str:
    done = "" if status["total"] is None else f", {status['done']} of {status['total']}"
    return (
        f"step {status['step'] + 1}/{status['num_steps']}, {status['stage']} for "
        f"{status['stage_s']:.0f} s{done}; last progress {status['progress_s']:.0f} s ago"
    )


def _wait(wait: Mapping[str, Any]) -> str:
    return f"{wait['what']}: {wait['waited_s']:g} s of at most {wait['limit_s']:g} s"


def _at_rest(run: "RunDirectory") -> str:
    state = run.state()
    if state.get("finished"):
        return f"{run.path}: finished after {state['step']} steps; its model is in {run.model}"
    project = run.path.parent.parent
    return (
        f"{run.path}: not running; {state.get('step', 0)} of {state.get('num_steps', '?')} steps "
        f"are saved. To go on: rnow run {quote(str(project))} --name {quote(run.path.name)}"
    )
