"""`rnow browse` and `rnow corpus`: the commands about pages. Parse and print; cli.py adds them."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from rnow.commands.arguments import Args, Dir, Json, find_project, load_project, make_console

corpus = typer.Typer(help="The page store: fill it, look at it, check it.", no_args_is_help=True)


def browse(
    url: Annotated[str, typer.Argument(metavar="URL", help="The page.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Config overrides.")
    ] = None,
    page: Annotated[int, typer.Option("--page", help="Part of a long page.")] = 1,
    directory: Dir = None,
    source: Annotated[
        Literal["auto", "http", "browser"],
        typer.Option("--source", help="auto: as in a run; the others: past the store."),
    ] = "auto",
    json_: Annotated[
        bool, typer.Option("--json", help="With code, url, source, cache, ms.")
    ] = False,
) -> None:
    """Show a page exactly as the model would get it; exit code 1 where there is none."""
    project, _ = find_project(None, directory)
    console = make_console(to_stderr=True)
    loaded = load_project(project, overrides or [], console)
    import asyncio

    from rnow.commands.browse import look_at

    look, notices = asyncio.run(look_at(loaded, project, url=url, page=page, source=source))
    for notice in notices:
        console.print(notice, style="yellow", soft_wrap=True)
    typer.echo(json.dumps(look.as_json()) if json_ else look.text)
    if look.code != "ok":
        raise typer.Exit(1)


@corpus.command()
def build(
    args: Args = None,
    directory: Dir = None,
    urls: Annotated[
        Path | None, typer.Option("--urls", help="A file with more pages, one URL a line.")
    ] = None,
    from_run: Annotated[
        str | None, typer.Option("--from-run", help="A run's name or folder: what it browsed.")
    ] = None,
    json_: Json = False,
) -> None:
    """Fetch the pages that the prompts need, once and politely; goes on where it was stopped."""
    project, overrides = find_project(args, directory)
    console = make_console(to_stderr=json_)
    loaded = load_project(project, overrides, console)
    from rnow.commands.corpus.build import build_project

    built = build_project(loaded, project, urls_file=urls, run=from_run, console=console)
    if json_:
        typer.echo(json.dumps(built.as_json()))
    if built.unfinished:
        raise typer.Exit(1)


@corpus.command()
def info(args: Args = None, directory: Dir = None, json_: Json = False) -> None:
    """Say what the store holds."""
    project, overrides = find_project(args, directory)
    console = make_console(to_stderr=json_)
    loaded = load_project(project, overrides, console)
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
    """Hash every page of the store again; exit code 1 where one is damaged."""
    project, overrides = find_project(args, directory)
    console = make_console(to_stderr=json_)
    loaded = load_project(project, overrides, console)
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
