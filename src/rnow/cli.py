"""The command line: parses, prints, and maps errors to exit codes; everything else is elsewhere.

Heavy modules are imported inside the commands, so that `rnow --help` answers at once.
"""

import errno
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnow import __version__
from rnow.commands.arguments import Args, Dir, Json, find_project, load_project, make_console
from rnow.commands.cli_models import eval_, try_
from rnow.commands.cli_pages import browse, corpus
from rnow.commands.cli_runs import replay, status, stop
from rnow.errors import Interrupted, RnowError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

EPILOG = (
    "This product includes software developed by UncleCode (https://x.com/unclecode) as part of "
    "the Crawl4AI project (https://github.com/unclecode/crawl4ai)."
)

_SIGNALS: dict[str | int | None, str] = {130: "Ctrl-C", 143: "SIGTERM"}
# What a machine refuses is no bug: the message is the system's own, with what to do.
_FREE_SPACE = "free some space; a run goes on where it was with the same command"
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EROFS: "use a folder that can be written",
    errno.EACCES: "give yourself the right to it, or use another folder",
    errno.EPERM: "give yourself the right to it, or use another folder",
    errno.ENOTDIR: "name a folder there, not a file",
    errno.EISDIR: "name a file there, not a folder",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or lower rollout.concurrency",
}

app = typer.Typer(
    name="rnow",
    help="Teach a small language model to work with tools the way a big one does.",
    epilog=EPILOG,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Config overrides of the run.")
]


def main() -> None:
    """Run the command line; a user's error is one message and an exit code, never a traceback."""
    # The default would end the process without a word, and leave its temporary folders behind.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except Interrupted as stop:
        _error_console().print(f"Stopped by {stop}")
        sys.exit(stop.exit_code)
    except RnowError as error:
        _error_console().print(f"Error: {error}", style="red")
        sys.exit(error.exit_code)
    except SystemExit as end:
        # A signal where no run was there to hear it: Ctrl-C ends typer with 130.
        if end.code in _SIGNALS:
            line = f"Stopped by {_SIGNALS[end.code]}"
            _error_console().print(line)
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # All but what the machine refused is a bug, whose traceback is wanted.
        if (text := _refusal(error)) is None:
            raise
        _error_console().print(f"Error: {text}", style="red")
        sys.exit(1)


def _refusal(error: Exception) -> str | None:
    """Return what to say of an error that a disk, a right or a limit of this machine made."""
    place = ""
    if isinstance(error, OSError) and error.errno:
        number = error.errno
        place = f"{error.filename}: " if error.filename else ""
    else:
        # safetensors tells of the system's errors in Rust's words, shutil of several at once.
        found = re.search(r"(?:\(os error |\[Errno )(\d+)", str(error))
        number = int(found[1]) if found else 0
    remedy = _REMEDIES.get(number)
    return None if remedy is None else f"{place}{os.strerror(number)}; {remedy}"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rnow {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    pass


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the project goes.")],
    template: Annotated[
        str, typer.Option("--template", "-t", help="clinic (offline) or medbrowsecomp.")
    ] = "clinic",
) -> None:
    """Copy a project template; existing files are never touched."""
    from rnow.commands.init import init_project

    console = make_console()
    made = init_project(folder, template=template, on_notice=console.print)
    inside = sorted({path.relative_to(folder).parts[0] for path in made})
    console.print(f"Made {len(made)} files in {folder}: {', '.join(inside)}")
    console.print(f"Next: cd {folder} && rnow check && rnow run")


@app.command()
def run(
    args: Args = None,
    directory: Dir = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the run.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin another run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, do not train.")] = False,
    model: Annotated[str | None, typer.Option("--model", "-m", help="model.path")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", "-e", help="num_epochs")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", "-b", help="data.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", "--learning-rate", help="trainer.")] = None,
) -> None:
    """Train; goes on with an unfinished run."""
    short = {
        "model.path": model,
        "trainer.num_epochs": epochs,
        "data.batch_size": batch_size,
        "trainer.learning_rate": lr,
    }
    project, overrides = find_project(args, directory)
    # An explicit override wins over its short flag, so it comes last.
    flags = [f"{key}={value}" for key, value in short.items() if value is not None]
    console = make_console()
    loaded = load_project(project, [*flags, *overrides], console)
    if dry_run:
        _report_check(project, [*flags, *overrides], console)
        return
    from rnow.commands.run import train_project

    train_project(loaded, project, name=name, fresh=fresh, console=console)


@app.command()
def check(args: Args = None, directory: Dir = None, json_: Json = False) -> None:
    """Say all that can be known before a model is loaded."""
    project, overrides = find_project(args, directory)
    _report_check(project, overrides, None if json_ else make_console())


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="runs/NAME of a project.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Target folder.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add the adapter to the model.")] = False,
) -> None:
    """Write the trained model in Hugging Face layout."""
    from rnow.commands.export import export_run

    target = export_run(run_folder, output=output, merge=merge)
    make_console().print(f"The model is in {target}")


@app.command()
def demo(
    args: Overrides = None,
    directory: Annotated[Path, typer.Option("--dir", "-d", help="Where it goes.")] = Path("clinic"),
    seed: Annotated[int, typer.Option("--seed", help="Seed of the run.")] = 0,
    engine: Annotated[str, typer.Option("--engine", help="engine.kind of the run.")] = "local",
    json_: Json = False,
) -> None:
    """Show the whole loop, offline, on this machine's CPU: before, training, after."""
    from rnow.commands.demo import run_demo

    result = run_demo(
        directory,
        seed=seed,
        engine=engine,
        overrides=args or [],
        console=make_console(to_stderr=json_),
    )
    if json_:
        typer.echo(json.dumps(result))


app.command("test")(try_)
app.command("eval")(eval_)
app.command()(browse)
app.command()(status)
app.command()(stop)
app.command()(replay)
app.add_typer(corpus, name="corpus")


@app.command(hidden=True)
def login() -> None:
    """Runs are local."""
    raise UsageError("runs are local: there is nothing to log in to. Start with: rnow run")


@app.command(hidden=True)
def logout() -> None:
    """Runs are local."""
    raise UsageError("runs are local: there is nothing to log out of")


@app.command(hidden=True)
def orgs() -> None:
    """Runs are local."""
    raise UsageError("runs are local: there are no organizations")


@app.command(hidden=True)
def download() -> None:
    """Runs are local."""
    raise UsageError("runs are local: the model is in runs/NAME/model; see also: rnow export")


def _report_check(project: Path, overrides: list[str], console: "Console | None") -> None:
    from rnow.commands.check.project import as_json, check_project

    report = check_project(project, overrides)
    if console is None:
        typer.echo(as_json(report))
    else:
        for line in report.lines():
            console.print(line, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(1)


def _error_console() -> "Console":
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
