"""`rnow report`: runs as one page, which says on top what is wrong with them."""

import os
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from rnow.commands.arguments import OUTPUT, find_run
from rnow.errors import UsageError

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

    from rnow.runs.folder import RunDirectory

AGAIN_AFTER_S = 30


def report(
    run_folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Folders of runs, runs/NAME, or NAME alone; several stand side by side. A "
            "project's folder, or none for the current one: all of its runs.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the page goes. Without it: report.html in the first run's folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    opens: Annotated[
        bool,
        typer.Option("--open", help="Open it in your web browser.", rich_help_panel=OUTPUT),
    ] = False,
    serves: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="Serve it to this machine alone until Ctrl-C, and read the runs again "
            f"every {AGAIN_AFTER_S} s; no file is written.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
) -> None:
    """Make a page of runs: curves, tools, transcripts coloured by the gap, and what is wrong.

    One file that opens from a disk and asks no network for anything.

    Example: rnow report runs/demo --open
    """
    from rnow.reports.page import make_report
    from rnow.runtime.atomic_files import replace_file

    runs = _find_runs(run_folders or [])
    page = make_report(runs)
    if serves:
        with make_server(runs) as server:
            _serve(server, opens=opens)
    file = output or runs[0].path / "report.html"
    replace_file(file, page)
    typer.echo(f"{file}: {len(page) / 1e6:.1f} MB, opens without a network")
    if opens and not open_page(file.resolve().as_uri()):
        typer.echo(
            f"no web browser could be opened here; open {file.resolve()} yourself, or copy it to "
            f"your own machine: scp {quote(f'{socket.gethostname()}:{file.resolve()}')} ."
        )


def open_page(address: str) -> bool:
    """Show it in the user's web browser and return whether one was found.

    Without a display the browsers that are left show text alone, and a report is none: those are
    used where BROWSER names one.
    """
    has_display = sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    return bool(has_display or os.environ.get("BROWSER")) and webbrowser.open(address)


def _serve(server: "ThreadingHTTPServer", *, opens: bool) -> None:
    """Answer until Ctrl-C; some browsers return when they are closed, so they have a thread."""
    port = server.server_address[1]
    address = f"http://127.0.0.1:{port}/"
    typer.echo(f"{address} until Ctrl-C")

    def show() -> None:
        if not open_page(address):
            typer.echo(
                f"no web browser could be opened here; open {address} yourself, from your own "
                f"machine through ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}"
            )

    if opens:
        threading.Thread(target=show, daemon=True).start()
    server.serve_forever()


def make_server(runs: "list[RunDirectory]") -> "ThreadingHTTPServer":
    """Return a server on a free port of loopback, which makes the page anew as the runs grow."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from rnow.reports.page import make_report

    made: dict[tuple[int, ...], bytes] = {}
    making = threading.Lock()

    def page_now() -> bytes:
        with making:
            stamp = _stamp(runs)
            if stamp not in made:
                made.clear()
                made[stamp] = make_report(runs).encode()
            return made[stamp]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A name that another site gave this address must not read the run.
            if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
                self.send_error(421)
                return
            if self.path != "/":
                self.send_error(404)
                return
            page = page_now()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Refresh", str(AGAIN_AFTER_S))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing of a request."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def _stamp(runs: "list[RunDirectory]") -> tuple[int, ...]:
    """Return what changes whenever a run writes what a page is made of."""
    files = [
        file
        for run in runs
        for file in (run.metrics_file, run.evals_file, run.state_file, run.path / "trajectories")
    ]
    return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)


def _find_runs(folders: list[Path]) -> "list[RunDirectory]":
    from rnow.runs.folder import RunDirectory

    found = [run for folder in folders for run in _runs_of(find_run(folder)) or [find_run(folder)]]
    found = found if folders else _runs_of(Path())
    if not found:
        raise UsageError("there are no runs in runs; name one: rnow report my-project/runs/NAME")
    return [RunDirectory(folder) for folder in found]


def _runs_of(project: Path) -> list[Path]:
    """Return the folders of a project's runs; none where it is no project."""
    return sorted(file.parent for file in (project / "runs").glob("*/state.json"))
