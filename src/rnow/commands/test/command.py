"""`rnow test`: what the words of its command line ask for. trial.py does it."""

import json
from typing import Annotated

import typer

from rnow.commands.arguments import (
    CHOICE,
    LIMITS,
    OUTPUT,
    Args,
    Dir,
    Json,
    MaxContextWindow,
    Model,
    make_console,
    open_project,
)
from rnow.errors import UsageError

NumRollouts = Annotated[
    int,
    typer.Option(
        "--num-rollouts",
        "-n",
        metavar="N",
        min=1,
        help="How many rollouts, each of an entry drawn by chance; with -e or --all, how many of "
        "each entry.",
        rich_help_panel=CHOICE,
    ),
]
Entries = Annotated[
    list[str] | None,
    typer.Option(
        "--entry",
        "-e",
        metavar="N,...",
        help="Which lines of the prompts' file, counted from 0: -e 0,2 -e 5.",
        rich_help_panel=CHOICE,
    ),
]
AllEntries = Annotated[
    bool,
    typer.Option("--all", help="Take every entry of the prompts' file.", rich_help_panel=CHOICE),
]
Teacher = Annotated[
    bool,
    typer.Option(
        "--teacher",
        help="Let the teacher answer, the same as --model teacher.",
        rich_help_panel=CHOICE,
    ),
]
NoTools = Annotated[
    bool,
    typer.Option(
        "--no-tools", help="Show the model no tools, and run none.", rich_help_panel=LIMITS
    ),
]
SmokeTest = Annotated[
    bool,
    typer.Option(
        "--smoke-test",
        help="Only see that all of it works: entry 0, at most 2 turns of 64 tokens each.",
        rich_help_panel=LIMITS,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Show all transcripts, with nothing cut.",
        rich_help_panel=OUTPUT,
    ),
]
Truncate = Annotated[
    bool,
    typer.Option(
        "--truncate",
        "-t",
        help="Cut all texts short. Without it only the results of tools are cut.",
        rich_help_panel=OUTPUT,
    ),
]


def try_(
    args: Args = None,
    directory: Dir = None,
    num_rollouts: NumRollouts = 1,
    entries: Entries = None,
    all_: AllEntries = False,
    model: Model = None,
    teacher: Teacher = False,
    max_context_window: MaxContextWindow = None,
    no_tools: NoTools = False,
    smoke_test: SmokeTest = False,
    verbose: Verbose = False,
    truncate: Truncate = False,
    json_: Json = False,
) -> None:
    """Let a model try a few prompts, with real tools and no training; show and keep the rollouts.

    Best done before a run: one sees what the student does, and what the tools
    answer. Each rollout becomes a file in the project. Exit code 1 if one failed.

    Example: rnow test my-project -e 0,3 --truncate
    """
    chosen = bool(entries) or all_ or num_rollouts > 1
    _refuse_both("--teacher", teacher, "--model", model is not None)
    _refuse_both("--verbose", verbose, "--truncate", truncate)
    _refuse_both("--smoke-test", smoke_test, "-e, --all or -n", chosen)
    console = make_console(to_stderr=json_)
    flags = {"rollout.max_context_window": max_context_window}
    loaded, project = open_project(args, directory, console, flags=flags)
    from rnow.commands.test.trial import Wishes, try_project

    wishes = Wishes(
        model="teacher" if teacher else model,
        entries=["0"] if smoke_test else entries or (),
        is_short=smoke_test,
        all_entries=all_,
        num_rollouts=num_rollouts,
        with_tools=not no_tools,
        verbose=verbose,
        truncate=truncate,
    )
    tried = try_project(loaded, project, wishes=wishes, console=console)
    if json_:
        typer.echo(json.dumps(tried))
    if tried["failed"]:
        console.print(f"{tried['failed']} rollout(s) failed. See errors above.", style="red")
        raise typer.Exit(1)


def _refuse_both(one: str, has_one: bool, other: str, has_other: bool) -> None:
    if has_one and has_other:
        raise UsageError(f"{one} does not go with {other}; give one of them")
