"""`rnow corpus build`, `info` and `verify`: the words of their command lines, and what is shown."""

import json
from pathlib import Path
from typing import Annotated

import typer

from rnow.commands.arguments import Args, Dir, Json, make_console, open_project

corpus = typer.Typer(no_args_is_help=True)


@corpus.callback()
def _corpus() -> None:
    """Fill, look at and check the page store: the web pages of a project, kept on this machine.

    With the pages in it a run needs no web, and reads the same pages every time.

    Example: rnow corpus build my-project
    """


@corpus.command()
def build(
    args: Args = None,
    directory: Dir = None,
    urls: Annotated[
        Path | None,
        typer.Option("--urls", metavar="FILE", help="A file with more pages, one URL a line."),
    ] = None,
    from_run: Annotated[
        str | None,
        typer.Option(
            "--from-run", metavar="RUN", help="Also what this run browsed: its name or its folder."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Fetch the pages that the prompts need, once and politely; goes on where it was stopped.

    Example: rnow corpus build my-project --urls more-pages.txt
    """
    console = make_console(to_stderr=json_)
    loaded, project = open_project(args, directory, console)
    from rnow.commands.corpus.build import build_project

    built = build_project(loaded, project, urls_file=urls, run=from_run, console=console)
    if json_:
        typer.echo(json.dumps(built.as_json()))
    if built.unfinished:
        raise typer.Exit(1)


@corpus.command()
def info(args: Args = None, directory: Dir = None, json_: Json = False) -> None:
    """Say what the store holds: pages by host, bytes, days.

    Example: rnow corpus info my-project
    """
    console = make_console(to_stderr=json_)
    loaded, project = open_project(args, directory, console)
    from rnow.commands.corpus.fetch import describe_corpus

    described = describe_corpus(loaded.config, project)
    if json_:
        typer.echo(json.dumps(described))
        return
    for name, value in described.items():
        shown = value
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {number}" for key, number in value.items())
        console.print(f"{name:<14} {shown}", soft_wrap=True)


@corpus.command()
def verify(args: Args = None, directory: Dir = None, json_: Json = False) -> None:
    """Hash every page of the store again; exit code 1 where one is damaged.

    Example: rnow corpus verify my-project
    """
    console = make_console(to_stderr=json_)
    loaded, project = open_project(args, directory, console)
    from rnow.commands.corpus.fetch import verify_corpus

    number, damaged = verify_corpus(loaded.config, project)
    if json_:
        typer.echo(json.dumps({"pages": number, "damaged": list(damaged)}))
    else:
        lines = [f"damaged: {url}" for url in damaged]
        state = f"{len(damaged)} damaged; rnow corpus build gets them again" if damaged else "whole"
        for line in (*lines, f"{number} pages, {state}"):
            console.print(line, soft_wrap=True)
    if damaged:
        raise typer.Exit(1)
