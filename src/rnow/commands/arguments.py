"""What commands share: the words that name a project, its config, and where lines are shown."""

import os
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rnow.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from rnow.config.load import LoadedConfig

# Panels of a command's help.
CHOICE = "What to work on"
LIMITS = "How much of it"
OUTPUT = "What is shown"

_KEY_VALUE = (
    "KEY=VALUE changes a setting of config.yml this time only, as in trainer.num_epochs=1; "
    "docs/configuration.md lists all keys, each with its meaning."
)
Args = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[DIR] [KEY=VALUE]...",
        help=f"DIR is the project's folder, without it the current one. {_KEY_VALUE}",
    ),
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help=_KEY_VALUE)]
Dir = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        "-d",
        metavar="DIR",
        help="The project's folder, another way to give it. Without it: the current one.",
        rich_help_panel=CHOICE,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="For programs: put one line of JSON on stdout, and all that is for people on stderr.",
        rich_help_panel=OUTPUT,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Which model: base (the student untrained), teacher, the name of a run, a checkpoint "
        "or a model's folder, a Hugging Face id as owner/name. Without it: what the project's run "
        "has come to, else base.",
        rich_help_panel=CHOICE,
    ),
]


def find_run(word: Path) -> Path:
    """Return the folder of a run that is given as such, or by its name in this project."""
    named = Path("runs", word)
    return named if named.is_dir() and not (word / "state.json").is_file() else word


RunFolder = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        callback=find_run,
        help="The run's folder, runs/NAME in its project's folder, or there NAME alone.",
    ),
]


def rollout_option(name: str, metavar: str, what: str) -> Any:
    """Make an option that is another way to give a setting of the rollout section."""
    key = f"rollout.{name.replace('-', '_')}"
    return typer.Option(
        f"--{name}",
        metavar=metavar,
        help=f"{what} The same as {key}={metavar}; without it, what config.yml says.",
        rich_help_panel=LIMITS,
    )


MaxContextWindow = Annotated[
    int | None,
    rollout_option(
        "max-context-window",
        "N",
        "Room for prompt, answers and tool results together, in tokens.",
    ),
]


def with_flags(flags: Mapping[str, object], overrides: list[str]) -> list[str]:
    """Put settings that were given as options before KEY=VALUE: an explicit override wins."""
    return [*(f"{key}={value}" for key, value in flags.items() if value is not None), *overrides]


def find_project(args: list[str] | None, directory: Path | None) -> tuple[Path, list[str]]:
    """Split DIR from KEY=VALUE: the first word without `=` is the folder."""
    folders = [arg for arg in args or [] if "=" not in arg]
    overrides = [arg for arg in args or [] if "=" in arg]
    if len(folders) + (directory is not None) > 1:
        named = [*folders, *([str(directory)] if directory else [])]
        raise UsageError(f"one project folder, please; got {' and '.join(named)}")
    project = directory or Path(folders[0] if folders else ".")
    if not project.is_dir():
        raise UsageError(f"{project} is not a folder. To make a project there: rnow init {project}")
    return project, overrides


def load_project(project: Path, overrides: list[str], console: Console) -> "LoadedConfig":
    """Load config.yml, and show what its writer should know."""
    from rnow.config.load import load_config

    refuse_run_folder(project)
    loaded = load_config(project, overrides=overrides)
    for line in (*loaded.notices, *loaded.overrides):
        console.print(line, style="yellow", soft_wrap=True)
    return loaded


def refuse_run_folder(project: Path) -> None:
    """Raise UsageError where the folder is a run's, in which its config.yml lies, too."""
    place = project.absolute()
    owner = place.parents[min(1, len(place.parents) - 1)]
    is_run = all((place / name).is_file() for name in ("state.json", "inputs.json"))
    if is_run and (owner / "config.yml").is_file():
        raise UsageError(
            f"{project} is the folder of a run, whose project is {owner}; to go on with that run: "
            f"rnow run {quote(str(owner))} --name {quote(place.name)}"
        )


def open_project(
    args: list[str] | None,
    directory: Path | None,
    console: Console,
    *,
    flags: Mapping[str, object] | None = None,
) -> "tuple[LoadedConfig, Path]":
    """Find the project that the words name, and load its config.yml as `load_project` does."""
    project, overrides = find_project(args, directory)
    return load_project(project, with_flags(flags or {}, overrides), console), project


def make_console(*, to_stderr: bool = False) -> Console:
    """Return a console that shows brackets as they are: they are in paths, tasks, lists."""
    return Console(stderr=to_stderr, markup=False, highlight=False)


def run_name(loaded: "LoadedConfig", project: Path) -> str:
    """Return the folder under runs/ when nobody names one: the project's name, or its folder's."""
    from rnow.runs.folder import slug

    return slug(loaded.project_name or project.resolve().name)


def require_writable(loaded: "LoadedConfig", project: Path) -> None:
    """Raise CheckpointError where a run without --name could not keep its files."""
    from rnow.runs.folder import RunDirectory

    path = RunDirectory.choose(project, run_name(loaded, project), fresh=False).path
    folder = next(place for place in (path, path.parent, project) if place.is_dir())
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"{folder} cannot be written, and a run keeps its files there: give yourself the right "
            "to it, or copy the project to another folder"
        )
