"""The command line: names the commands, and maps errors to exit codes. Each is in `commands`.

They import heavy modules inside their functions, so that `rnow --help` answers at once.
"""

import errno
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from rnow import __version__
from rnow.commands.browse import browse
from rnow.commands.check.project import check
from rnow.commands.corpus.command import corpus
from rnow.commands.demo import demo
from rnow.commands.eval import eval_
from rnow.commands.export import export
from rnow.commands.hosted import Debug, download, hosted_option, login, logout, orgs, tell_ignored
from rnow.commands.init import init
from rnow.commands.replay import replay
from rnow.commands.report import report
from rnow.commands.run import run
from rnow.commands.status import status, stop
from rnow.commands.test.command import try_
from rnow.errors import Interrupted, RnowError
from rnow.runtime.atomic_files import errno_of
from rnow.runtime.output import settle_streams
from rnow.runtime.stop_signals import hear_stop_signals

EPILOG = (
    "This product includes software developed by UncleCode (https://x.com/unclecode) as part of "
    "the Crawl4AI project (https://github.com/unclecode/crawl4ai)."
)

_SIGNALS: dict[str | int | None, str] = {129: "SIGHUP", 130: "Ctrl-C", 143: "SIGTERM"}
# What a machine refuses is no bug: the message is the system's own, with what to do.
_FREE_SPACE = "free some space; a run goes on where it was with the same command"
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: _FREE_SPACE,
    errno.EROFS: "use a folder that can be written",
    errno.EACCES: "give yourself the right to it, or use another folder",
    errno.EPERM: "give yourself the right to it, or use another folder",
    errno.ENOTDIR: "name a folder there, not a file",
    errno.EEXIST: "a folder is to be made there: move away what is in its place",
    errno.EISDIR: "name a file there, not a folder",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or lower rollout.concurrency",
}

app = typer.Typer(
    name="rnow",
    help="Teach a small language model to work with tools the way a big one does.\n\n"
    "Example: rnow demo",
    epilog=EPILOG,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; a user's error is one message and an exit code, never a traceback."""
    settle_streams()
    hear_stop_signals()
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
    number = errno_of(error)
    remedy = _REMEDIES.get(number)
    # Where one file is to blame, an OSError knows its name.
    place = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    return None if remedy is None else f"{place}{os.strerror(number)}; {remedy}"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rnow {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version, and exit."
        ),
    ] = False,
    debug: Debug = False,
    api_url: Annotated[str | None, hosted_option("--api-url", metavar="URL")] = None,
) -> None:
    tell_ignored(_error_console(), debug=debug, api_url=api_url)


_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Start here": {"demo": demo, "init": init, "check": check},
    "Train": {"run": run, "status": status, "stop": stop, "export": export},
    "Look at what a model does": {"test": try_, "eval": eval_, "replay": replay, "report": report},
    "Pages": {"browse": browse},
}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(corpus, name="corpus", rich_help_panel="Pages")
for _hosted in (login, logout, orgs, download):
    app.command(hidden=True)(_hosted)


def _error_console() -> Console:
    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
