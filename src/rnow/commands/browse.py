"""`rnow browse`: one page, as the model would get it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rnow.commands.arguments import Dir, Json, Overrides, find_project, load_project, make_console
from rnow.errors import UsageError

if TYPE_CHECKING:
    from rnow.config.load import LoadedConfig


def browse(
    url: Annotated[str, typer.Argument(metavar="URL", help="The page, as https://example.org.")],
    overrides: Overrides = None,
    page: Annotated[
        int, typer.Option("--page", metavar="N", help="Which part of a long page, from 1.")
    ] = 1,
    directory: Dir = None,
    source: Annotated[
        Literal["auto", "http", "browser"],
        typer.Option(
            "--source",
            help="What reads the page: auto, as in a run; http or browser (Chromium), that alone, "
            "past the page store.",
        ),
    ] = "auto",
    json_: Json = False,
) -> None:
    """Show a web page exactly as the model would get it; exit code 1 where there is none.

    With --json also its code, url, source, cache and ms. Which hosts a project
    may read is in its config.yml, under browser.

    Example: rnow browse https://example.org --dir my-project
    """
    project, _ = find_project(None, directory)
    console = make_console(to_stderr=True)
    loaded = load_project(project, overrides or [], console)
    from rnow.runtime.main_task import run_main

    reading = look_at(loaded, project, url=url, page=page, source=source, is_described=json_)
    look, notices = run_main(reading)
    for notice in notices:
        console.print(notice, style="yellow", soft_wrap=True)
    typer.echo(json.dumps(look) if json_ else look["text"])
    if look["code"] != "ok":
        raise typer.Exit(1)


async def look_at(
    loaded: "LoadedConfig",
    directory: Path,
    *,
    url: str,
    page: int,
    source: str,
    is_described: bool,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read one page; return what --json shows of it, and what the user should know.

    Its code is ok, that of an error, or of the tool call: error, timeout. `source` auto: as a run
    would. http or browser: by that alone, past the store. Unless `is_described` it has no more.
    """
    from rnow.browser.chromium.executable import NO_CHROMIUM, find_chromium
    from rnow.commands.pages import open_pages, outcome_of
    from rnow.records import ToolOutcome

    program = loaded.config.browser.executable
    if source == "browser" and find_chromium(program, directory=directory) is None:
        raise UsageError(f"--source browser: {NO_CHROMIUM}")
    changes: dict[str, Any] = {"source": source}
    if source != "auto":
        changes |= {"store": None, "store_mode": "live"}
    async with open_pages(loaded, directory, **changes) as pages:
        answer = await pages.read(url, page)
        got: Mapping[str, Any] = {"code": outcome_of(answer)}
        if is_described:
            is_read = answer.outcome is ToolOutcome.OK
            unknown = dict.fromkeys(("url", "source", "cache"))
            got = await pages.describe() if is_read else {**got, **unknown}
        notices = (*pages.notices, *pages.reasons(url))
    return {"text": answer.text, **got, "ms": round(1_000 * answer.duration_s)}, notices
