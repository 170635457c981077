"""`rnow eval` and `rnow test`: the commands that look at a model without training it."""

import json
from typing import Annotated

import typer

from rnow.commands.arguments import Args, Dir, Json, find_project, load_project, make_console
from rnow.errors import UsageError

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="base, teacher, a run's name, a checkpoint or a model's folder."
    ),
]

NumRollouts = Annotated[
    int, typer.Option("--num-rollouts", "-n", min=1, help="Rollouts; with -e or --all, of each.")
]
Entries = Annotated[
    list[str] | None,
    typer.Option("--entry", "-e", help="Entries of the prompts' file, from 0: -e 0,2 -e 5."),
]
MaxContextWindow = Annotated[
    int | None, typer.Option("--max-context-window", min=1, help="rollout.")
]
SmokeTest = Annotated[
    bool, typer.Option("--smoke-test", help="Entry 0, at most 2 turns of 64 tokens each.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="All transcripts, nothing cut.")]
Truncate = Annotated[
    bool, typer.Option("--truncate", "-t", help="Cut all texts short, not only results.")
]


def eval_(
    args: Args = None,
    directory: Dir = None,
    model: Model = None,
    pass1: Annotated[
        bool, typer.Option("--pass1/--no-pass1", help="Accuracy of one attempt.")
    ] = True,
    pass4: Annotated[
        bool, typer.Option("--pass4/--no-pass4", help="One of 4 attempts is right.")
    ] = False,
    pass8: Annotated[
        bool, typer.Option("--pass8/--no-pass8", help="One of 8 attempts is right.")
    ] = False,
    pass1_temp: Annotated[
        float, typer.Option("--pass1-temp", min=0, help="Temperature of pass1; 0: greedy.")
    ] = 0.0,
    pass4_temp: Annotated[
        float, typer.Option("--pass4-temp", min=0, help="Temperature of pass4.")
    ] = 0.6,
    pass8_temp: Annotated[
        float, typer.Option("--pass8-temp", min=0, help="Temperature of pass8.")
    ] = 0.8,
    max_samples: Annotated[
        int | None,
        typer.Option("--max-samples", "-n", min=1, help="Only the first so many prompts."),
    ] = None,
    json_: Json = False,
) -> None:
    """Measure accuracy on the held-out prompts."""
    from rnow.evaluation.pass_at_k import PassAtK, choose_passes

    passes = choose_passes(
        [
            (PassAtK(1, pass1_temp), pass1),
            (PassAtK(4, pass4_temp), pass4),
            (PassAtK(8, pass8_temp), pass8),
        ]
    )
    project, overrides = find_project(args, directory)
    console = make_console(to_stderr=json_)
    loaded = load_project(project, overrides, console)
    from rnow.commands.eval import evaluate_project

    evaluation = evaluate_project(
        loaded, project, model=model, passes=passes, max_samples=max_samples, console=console
    )
    if json_:
        typer.echo(json.dumps(evaluation))


def try_(
    args: Args = None,
    directory: Dir = None,
    num_rollouts: NumRollouts = 1,
    entries: Entries = None,
    all_: Annotated[bool, typer.Option("--all", help="Every entry.")] = False,
    model: Model = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="As --model teacher.")] = False,
    max_context_window: MaxContextWindow = None,
    no_tools: Annotated[bool, typer.Option("--no-tools", help="Show the model no tools.")] = False,
    smoke_test: SmokeTest = False,
    verbose: Verbose = False,
    truncate: Truncate = False,
    json_: Json = False,
) -> None:
    """Roll a few prompts out, with real tools and no training; show and keep them.

    Exit code 1 if a rollout failed.
    """
    chosen = bool(entries) or all_ or num_rollouts > 1
    _refuse_both("--teacher", teacher, "--model", model is not None)
    _refuse_both("--verbose", verbose, "--truncate", truncate)
    _refuse_both("--smoke-test", smoke_test, "-e, --all or -n", chosen)
    project, overrides = find_project(args, directory)
    console = make_console(to_stderr=json_)
    if max_context_window is not None:
        # As in `rnow run`, an explicit override wins over its flag, so it comes last.
        overrides.insert(0, f"rollout.max_context_window={max_context_window}")
    loaded = load_project(project, overrides, console)
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
