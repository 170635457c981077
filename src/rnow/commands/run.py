"""`rnow run`: find the models, choose the run, train."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rnow.commands.arguments import (
    CHOICE,
    Args,
    Dir,
    find_project,
    load_project,
    make_console,
    run_name,
    with_flags,
)
from rnow.commands.contact import decide_contact
from rnow.commands.hosted import Debug, tell_ignored
from rnow.errors import Interrupted, UsageError
from rnow.runtime.console import sayer
from rnow.runtime.own_variables import set_for_this_process

if TYPE_CHECKING:
    from rnow.config.load import LoadedConfig
    from rnow.runs.folder import RunDirectory

_SETTINGS = "Settings that are changed often; KEY=VALUE changes any"
_Student = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="The student, which learns: a Hugging Face id or a folder. The same as "
        "model.path=MODEL; without it, what config.yml says.",
        rich_help_panel=_SETTINGS,
    ),
]
_Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        "-e",
        metavar="N",
        help="How often each prompt is gone through. The same as trainer.num_epochs=N; without "
        "it, what config.yml says.",
        rich_help_panel=_SETTINGS,
    ),
]
_BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        "-b",
        metavar="N",
        help="Prompts between two changes of the student's weights. The same as "
        "data.batch_size=N; without it, what config.yml says.",
        rich_help_panel=_SETTINGS,
    ),
]
_LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        "--learning-rate",
        metavar="X",
        help="How far each update moves the weights. The same as trainer.learning_rate=X; without "
        "it, what config.yml says.",
        rich_help_panel=_SETTINGS,
    ),
]


def run(
    args: Args = None,
    directory: Dir = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            metavar="NAME",
            help="Which run: its files are in runs/NAME. Without it: the project's name.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Begin another run, numbered NAME-2 and so on, where one is there already.",
            rich_help_panel=CHOICE,
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the project as rnow check does; train nothing.")
    ] = False,
    model: _Student = None,
    epochs: _Epochs = None,
    batch_size: _BatchSize = None,
    lr: _LearningRate = None,
    debug: Debug = False,
) -> None:
    """Train the student of a project, or go on with its unfinished run.

    The student answers the prompts with the tools of tools.py, and learns from
    how likely the teacher finds each token of that. config.yml names both
    models, the prompts and the limits. What a run makes is in runs/NAME. Ctrl-C
    saves and ends it; the same command goes on.

    Example: rnow run my-project trainer.num_epochs=1 --name short
    """
    short = {
        "model.path": model,
        "trainer.num_epochs": epochs,
        "data.batch_size": batch_size,
        "trainer.learning_rate": lr,
    }
    project, overrides = find_project(args, directory)
    overrides = with_flags(short, overrides)
    console = make_console()
    tell_ignored(console, debug=debug)
    if dry_run:
        from rnow.commands.check.project import report_check

        report_check(project, overrides, console)
    else:
        loaded = load_project(project, overrides, console)
        train_project(loaded, project, name=name, fresh=fresh, console=console)


def train_project(
    loaded: "LoadedConfig", project: Path, *, name: str | None, fresh: bool, console: Console
) -> "RunDirectory":
    """Train to the end, or go on with an unfinished run; a finished one is left as it is."""
    from rnow.cluster.machines import find_machines
    from rnow.config.load import require_distill
    from rnow.plan.engine_specs import Serving, trainer_environment
    from rnow.plan.model_files import fetch_model
    from rnow.plan.placing import place_roles
    from rnow.runs.folder import RunDirectory

    say = sayer(console)
    require_distill(loaded)
    name = _folder_name(name) or run_name(loaded, project)
    run = RunDirectory.choose(project, name, fresh=fresh)
    if run.state().get("finished"):
        from rnow.runs.resume import check_finished

        check_finished(run.path, run.read_config(), loaded.config.model_dump(mode="json"))
        say(
            f"{run.path} is finished; its model is in {run.model}. "
            f"To train another one: {_command(project, name)} --fresh"
        )
        return run
    placement = place_roles(loaded, project, machines=find_machines(loaded.config, project))
    loaded = decide_contact(loaded, console)
    for line in placement.lines():
        say(line)
    serving = Serving(config=loaded.config, placement=placement, logs=run.logs, untied=run.untied)
    # torch counts GPUs when it is first used, as these variables say.
    set_for_this_process(trainer_environment(placement.plan, serving.environ))
    # Models can run here, so what takes seconds to import is needed.
    from rnow.runtime.main_task import run_main
    from rnow.training.session import ModelFolders, Session, run_session

    session = Session(
        loaded=loaded,
        directory=project,
        run=run,
        models=ModelFolders(
            student=fetch_model(placement.models["student"]),
            teacher=fetch_model(
                placement.models["teacher"], weights=placement.engines["teacher"] != "url"
            ),
        ),
        serving=serving,
    )
    try:
        run_main(run_session(session, console))
    except Interrupted as stop:
        state = run.state()
        raise Interrupted(
            f"{stop}: {state.get('step', 0)} of {state.get('num_steps', '?')} steps are done and "
            f"saved in {run.path}. To go on: {_command(project, run.path.name)}"
            + (", with the same overrides" if loaded.overrides else ""),
            stop.exit_code,
        ) from stop
    say(f"done: the model is in {run.model}")
    return run


def _command(project: Path, name: str) -> str:
    return f"rnow run {quote(str(project))} --name {quote(name)}"


def _folder_name(name: str | None) -> str | None:
    if name is not None and (name in ("", ".", "..") or "/" in name):
        raise UsageError(f"--name {name!r}: give the name of a folder under runs/, without a slash")
    return name
