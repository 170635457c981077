"""What commands share: the words that name a project, its config, and where lines are shown."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnow.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from rnow.config.load import LoadedConfig

Args = Annotated[
    list[str] | None,
    typer.Argument(metavar="[DIR] [KEY=VALUE]...", help="Project folder (.) and config overrides."),
]
Dir = Annotated[Path | None, typer.Option("--dir", "-d", help="Project folder.")]
Json = Annotated[bool, typer.Option("--json", help="End with one line of JSON.")]


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


def load_project(project: Path, overrides: list[str], console: "Console") -> "LoadedConfig":
    """Load config.yml, and show what its writer should know."""
    from rnow.config.load import load_config

    loaded = load_config(project, overrides=overrides)
    for line in (*loaded.notices, *loaded.overrides):
        console.print(line, style="yellow", soft_wrap=True)
    return loaded


def make_console(*, to_stderr: bool = False) -> "Console":
    """Return a console that shows brackets as they are: they are in paths, tasks, lists."""
    from rich.console import Console

    return Console(stderr=to_stderr, markup=False, highlight=False)
