"""`rnow demo`: the offline project end to end. Accuracy before, the run, accuracy after."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rnow.commands.arguments import Json, Overrides, make_console
from rnow.commands.init import init_project
from rnow.commands.run import train_project
from rnow.errors import UsageError
from rnow.runtime.console import sayer

if TYPE_CHECKING:
    from rnow.config.load import LoadedConfig
    from rnow.evaluation.figures import Evaluation

NUM_TRANSCRIPTS = 3


def demo(
    args: Overrides = None,
    directory: Annotated[
        Path,
        typer.Option(
            "--dir", "-d", metavar="DIR", help="Where the demo's project goes, or is already."
        ),
    ] = Path("clinic"),
    seed: Annotated[
        int,
        typer.Option(
            "--seed", metavar="N", help="All random draws of the run come from this number."
        ),
    ] = 0,
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="KIND",
            help="What samples in the run: local, this process; vllm, a server on a GPU.",
        ),
    ] = "local",
    json_: Json = False,
) -> None:
    """Show the whole loop, offline, on this machine's CPU: before, training, after.

    A small model learns from a bigger one to answer questions with the pages of
    a small web site. All of it comes with rnow; it takes some minutes.

    Example: rnow demo --dir my-demo
    """
    console = make_console(to_stderr=json_)
    result = run_demo(directory, seed=seed, engine=engine, overrides=args or [], console=console)
    if json_:
        typer.echo(json.dumps(result))


def run_demo(
    directory: Path, *, seed: int, engine: str, overrides: Sequence[str] = (), console: Console
) -> dict[str, Any]:
    """Make the project in `directory` if it is not there, measure, train, measure; return figures.

    {"before": 0.08, "after": 0.95, "teacher": 0.99, "seconds": 180.3, "run": "clinic/runs/demo"}
    """
    from rnow.config.load import load_config

    say = sayer(console)
    _make_project(directory, say=say)
    # Models this small gain nothing from a second thread and lose much on a busy machine. torch
    # reads this once, when it is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    loaded = load_config(directory, overrides=[f"seed={seed}", f"engine.kind={engine}", *overrides])
    started = time.perf_counter()
    say("1/4  Before: the student on held-out questions, browsing the local site.")
    before = _measure(loaded, directory, "student")
    say(f"     {_percent(before)} correct of {len(before.answers)}")
    say("2/4  The teacher on the same questions.")
    teacher = _measure(loaded, directory, "teacher")
    say(f"     {_percent(teacher)} correct")
    say("3/4  The run: the student answers, the teacher says how likely it finds each token.")
    run = train_project(loaded, directory, name="demo", fresh=True, console=console)
    say("4/4  After: the trained student on the same questions.")
    after = _measure(loaded, directory, "student", adapter=run.model)
    say(f"     {_percent(after)} correct")
    seconds = time.perf_counter() - started
    _show_transcripts(after, directory, console)
    _show_result(before, teacher, after, console)
    say(f"{seconds:.0f} s for training and all evaluations. The model: {run.model}")
    say(
        f"Next: read {directory}/config.yml and tools.py, change them, then: rnow run {directory} "
        f"--fresh\n      rnow eval {directory} --model {run.path.name}"
        f"      rnow export {run.path} --merge\n"
        "      your own task: rnow init my-project --template medbrowsecomp"
    )
    return {
        "before": before.accuracy,
        "after": after.accuracy,
        "teacher": teacher.accuracy,
        "seconds": round(seconds, 1),
        "run": str(run.path),
    }


def _make_project(directory: Path, *, say: Callable[[str], None]) -> None:
    """Copy the project, unless it is there; raise UsageError where another one is."""
    if not (directory / "config.yml").exists():
        init_project(directory, template="clinic")
        say(f"Made the project {directory}: config.yml, tools.py, prompts, a web site, two models.")
        return
    for part in ("models/student", "models/teacher", "rewards.py"):
        if not (directory / part).exists():
            raise UsageError(
                f"{directory} holds another project, without {part}; "
                "name a folder for the demo with --dir"
            )
    say(f"The project is in {directory} already; it stays as it is.")


def _measure(
    loaded: "LoadedConfig", directory: Path, model: str, *, adapter: Path | None = None
) -> "Evaluation":
    """Evaluate in this process, on the CPU, whatever the run's engine is: one measure for all."""
    from rnow.engines.spec import EngineSpec
    from rnow.evaluation.held_out import evaluate_model
    from rnow.evaluation.subject import Subject
    from rnow.runtime.main_task import run_main

    spec = EngineSpec(
        role="student",
        model=(directory / "models" / model).resolve(),
        dtype="float32",
        device="cpu",
        request_timeout_s=loaded.config.engine.request_timeout_s,
        tolerance=0.05,
    )
    subject = Subject(engine=spec, adapter=adapter)
    log_file = directory / "runs" / "evaluations" / "tools.log"
    return run_main(evaluate_model(loaded, directory, subject=subject, log_file=log_file))


def _percent(evaluation: "Evaluation") -> str:
    return f"{100 * evaluation.accuracy:.1f} %"


def _show_transcripts(evaluation: "Evaluation", directory: Path, console: Console) -> None:
    """Show the first answer to each form of question."""
    from rnow.chat.template import ChatTemplate
    from rnow.chat.transcript import transcript

    chat = ChatTemplate.load(directory / "models" / "student", reasoning_mode="none")
    shown: set[str] = set()
    for answer in evaluation.answers:
        task = str(answer.prompt.metadata.get("task_name", "an answer"))
        if task in shown or len(shown) == NUM_TRANSCRIPTS:
            continue
        shown.add(task)
        verdict = "correct" if answer.grade.correct else "wrong"
        console.rule(f"{task}: {verdict}", align="left")
        console.print(transcript(answer.trajectory, chat), markup=False, highlight=False)
    console.rule()


def _show_result(
    before: "Evaluation", teacher: "Evaluation", after: "Evaluation", console: Console
) -> None:
    table = Table(title=f"Accuracy on {len(after.answers)} held-out questions, greedy")
    for column in ("", "before", "after", "teacher"):
        table.add_column(column, justify="right")
    for task in after.by_task:
        figures = (evaluation.by_task[task] for evaluation in (before, after, teacher))
        table.add_row(task, *(f"{100 * figure:.1f} %" for figure in figures))
    table.add_section()
    table.add_row("all", *(_percent(evaluation) for evaluation in (before, after, teacher)))
    console.print(table)
