"""`rnow init`: a template's files into a folder.

What stands in the folder stays as it is: every file is opened with the flag that refuses an
existing one, nothing is deleted, and config.yml is copied byte for byte, comments included. Nothing
here needs a network.
"""

import difflib
import json
import os
import runpy
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from rnow.commands.arguments import make_console
from rnow.commands.hosted import Yes, hosted_option, nearest_template, tell_ignored
from rnow.errors import UsageError
from rnow.runtime.console import sayer

TEMPLATES = ("clinic", "medbrowsecomp")

_TEMPLATES_FOLDER = Path(__file__).parents[1] / "templates"
_NUM_NAMES_SHOWN = 5


def init(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="[DIR]",
            help="Where the project goes; the folder is made if need be. Without it: here.",
        ),
    ] = Path(),
    template: Annotated[
        str,
        typer.Option(
            "--template",
            "-t",
            metavar="NAME",
            help="clinic trains two tiny models offline, in minutes, on a CPU; medbrowsecomp "
            "trains Qwen3-8B to answer medical questions on the web, on GPUs.",
        ),
    ] = "clinic",
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            metavar="NAME",
            help="What its runs are called; it is written into config.yml. Without it: DIR's name.",
        ),
    ] = None,
    yes: Yes = False,
    dataset: Annotated[str | None, hosted_option("--dataset", "-d", metavar="NAME")] = None,
) -> None:
    """Make a project to start from: config.yml, tools.py and prompts.

    Files that are there already stay as they are. Next, look at config.yml,
    and train with rnow run.

    Example: rnow init my-project --template medbrowsecomp
    """
    console = make_console()
    say = sayer(console)
    tell_ignored(console, dataset=dataset)
    template = nearest_template(template, console)
    made = init_project(folder, template=template, on_notice=say)
    config = folder / "config.yml"
    if name is not None and config in made:
        with config.open("a", encoding="utf-8") as file:
            file.write(f"\nproject_name: {json.dumps(name, ensure_ascii=False)}\n")
    elif name is not None:
        say(f"--name: {config} was there already; set project_name in it yourself")
    inside = sorted({path.relative_to(folder).parts[0] for path in made})
    say(f"Made {len(made)} files in {folder}: {', '.join(inside)}")
    there = "" if folder == Path() else f"cd {folder} && "
    say(f"Next: {there}rnow check && rnow run")


def init_project(
    folder: Path,
    *,
    template: str,
    seed: int = 0,
    on_notice: Callable[[str], None] = lambda notice: None,
) -> tuple[Path, ...]:
    """Copy `template` into `folder`, made if need be; return the files that were made.

    `on_notice` gets one sentence if files were there already. `seed` is that of generated pages.

    >>> init_project(Path("medbrowse"), template="medbrowsecomp")[0]
    PosixPath('medbrowse/config.yml')
    """
    if template not in TEMPLATES:
        near = difflib.get_close_matches(template, TEMPLATES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {' and '.join(TEMPLATES)}"
        raise UsageError(f"there is no template {template}; {hint}")
    with tempfile.TemporaryDirectory(prefix="rnow-init-") as scratch:
        sources = _sources(_TEMPLATES_FOLDER / template, Path(scratch), seed)
        _refuse_files_in_the_way(folder, sources)
        created = tuple(folder / path for path in sources if _copy(sources[path], folder / path))
    if kept := sorted(folder / path for path in sources if folder / path not in created):
        on_notice(_kept_notice(kept))
    return created


def _sources(template: Path, scratch: Path, seed: int) -> dict[Path, Path]:
    """Return path in the project -> file to copy: the template's own, then those it generates."""
    generator = template / "make_site.py"
    if generator.is_file():
        # A file of the project, not a module of this package.
        runpy.run_path(str(generator))["make_project_data"](scratch, seed)
    return {
        file.relative_to(root): file for root in (template, scratch) for file in _files_in(root)
    }


def _files_in(root: Path) -> Iterator[Path]:
    for file in sorted(root.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            yield file


def _refuse_files_in_the_way(folder: Path, paths: Iterable[Path]) -> None:
    """Find out before the first copy what would stop a later one."""
    wanted = {parent for path in paths for parent in (folder / path).parents}
    for parent in sorted(wanted):
        if parent.exists() and not parent.is_dir():
            raise UsageError(f"{parent} is a file, and the template needs a folder there")


def _copy(source: Path, target: Path) -> bool:
    """Copy unless `target` is there; return whether it was copied."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(source.read_bytes())
    except FileExistsError:
        return False
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from error
    return True


def _kept_notice(kept: list[Path]) -> str:
    names = ", ".join(str(path) for path in kept[:_NUM_NAMES_SHOWN])
    more = len(kept) - _NUM_NAMES_SHOWN
    return f"there already, left as it was: {names}" + (f" and {more} more" if more > 0 else "")
