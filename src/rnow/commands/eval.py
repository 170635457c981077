"""`rnow eval`: find the model, place it, evaluate it, show the figures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rnow.commands.arguments import (
    CHOICE,
    LIMITS,
    Args,
    Dir,
    Json,
    MaxContextWindow,
    Model,
    make_console,
    open_project,
    rollout_option,
    run_name,
)
from rnow.commands.contact import decide_contact
from rnow.commands.hosted import hosted_option, tell_ignored
from rnow.runtime.console import make_bar, sayer

if TYPE_CHECKING:
    from rnow.config.load import LoadedConfig
    from rnow.evaluation.figures import Evaluation, Figures
    from rnow.evaluation.pass_at_k import PassAtK

_MEASURES = "What is measured"


def _measure_option(k: int) -> Any:
    what = "the one attempt" if k == 1 else f"at least one of {k} attempts"
    return typer.Option(
        f"--pass{k}/--no-pass{k}",
        help=f"Whether to measure how often {what} at a prompt is right.",
        rich_help_panel=_MEASURES,
    )


def _temperature_option(k: int) -> Any:
    return typer.Option(
        f"--pass{k}-temp",
        metavar="X",
        min=0,
        help=f"How freely the attempts of --pass{k} are sampled; 0 is greedy.",
        rich_help_panel=_MEASURES,
    )


MaxTurns = Annotated[int | None, rollout_option("max-turns", "N", "Generations in one rollout.")]
TerminationPolicy = Annotated[
    str | None,
    rollout_option("termination-policy", "NAME", "When a rollout ends: last_tool or max_turns."),
]
MaxToolResponse = Annotated[
    int | None,
    rollout_option("max-tool-response", "N", "What is shown of one tool result, in tokens."),
]
ReasoningMode = Annotated[
    str | None, rollout_option("reasoning-mode", "NAME", "How much the model thinks.")
]

MaxSamples = Annotated[
    int | None,
    typer.Option(
        "--max-samples",
        "-n",
        metavar="N",
        min=1,
        help="Evaluate on the first N prompts. Without it: on all of them.",
        rich_help_panel=LIMITS,
    ),
]
McpUrl = Annotated[
    list[str] | None,
    typer.Option(
        "--mcp-url",
        metavar="URL",
        help="An MCP server whose tools the model may call, in the place of those of "
        "rollout.mcp_url; may be given more than once.",
        rich_help_panel=CHOICE,
    ),
]


def eval_(
    args: Args = None,
    directory: Dir = None,
    model: Model = None,
    pass1: Annotated[bool, _measure_option(1)] = True,
    pass4: Annotated[bool, _measure_option(4)] = False,
    pass8: Annotated[bool, _measure_option(8)] = False,
    pass1_temp: Annotated[float, _temperature_option(1)] = 0.0,
    pass4_temp: Annotated[float, _temperature_option(4)] = 0.6,
    pass8_temp: Annotated[float, _temperature_option(8)] = 0.8,
    max_samples: MaxSamples = None,
    max_turns: MaxTurns = None,
    max_context_window: MaxContextWindow = None,
    termination_policy: TerminationPolicy = None,
    max_tool_response: MaxToolResponse = None,
    reasoning_mode: ReasoningMode = None,
    mcp_url: McpUrl = None,
    json_: Json = False,
    project_id: Annotated[str | None, hosted_option("--project-id", metavar="ID")] = None,
    eval_id: Annotated[str | None, hosted_option("--eval-id", metavar="ID")] = None,
    max_billing: Annotated[str | None, hosted_option("--max-billing", metavar="X")] = None,
) -> None:
    """Measure how many held-out prompts, those of val.jsonl, a model answers right.

    Example: rnow eval my-project --model base --max-samples 50
    """
    from rnow.evaluation.pass_at_k import PassAtK, choose_passes

    passes = choose_passes(
        [
            (PassAtK(1, pass1_temp), pass1),
            (PassAtK(4, pass4_temp), pass4),
            (PassAtK(8, pass8_temp), pass8),
        ]
    )
    console = make_console(to_stderr=json_)
    if mcp_url:
        args = [*(args or []), f"rollout.mcp_url={json.dumps(mcp_url)}"]
    tell_ignored(console, project_id=project_id, eval_id=eval_id, max_billing=max_billing)
    flags = {
        "rollout.max_turns": max_turns,
        "rollout.max_context_window": max_context_window,
        "rollout.termination_policy": termination_policy,
        "rollout.max_tool_response": max_tool_response,
        "rollout.reasoning_mode": reasoning_mode,
    }
    loaded, project = open_project(args, directory, console, flags=flags)
    evaluation = evaluate_project(
        loaded, project, model=model, passes=passes, max_samples=max_samples, console=console
    )
    if json_:
        typer.echo(json.dumps(evaluation))


def evaluate_project(
    loaded: "LoadedConfig",
    project: Path,
    *,
    model: str | None,
    passes: "Sequence[PassAtK]",
    max_samples: int | None,
    console: Console,
) -> dict[str, Any]:
    """Return the figures of one model on data.val_file, and show them as a table.

    `model`: as rnow.evaluation.subject.choose_model takes it.
    """
    from rnow.chat.prompts import read_prompt_file
    from rnow.config.load import require_messages
    from rnow.evaluation.held_out import evaluate_model
    from rnow.evaluation.subject import choose_model, in_its_run, prepared_subject
    from rnow.runtime.main_task import run_main

    require_messages(loaded)
    # Before a model is fetched for nothing.
    held_out = project / loaded.config.data.val_file
    read_prompt_file(
        held_out,
        dataset_type=loaded.config.dataset_type,
        drop_last_answer=loaded.config.data.drop_last_answer,
    )
    loaded = decide_contact(loaded, console)
    choice = choose_model(loaded, project, name=model, run=run_name(loaded, project))
    loaded = in_its_run(loaded, choice)
    say = sayer(console)
    prepared = prepared_subject(loaded, project, choice=choice, command="eval", say=say)
    with prepared as (subject, logs):
        with make_bar(console) as progress:
            bar = progress.add_task(f"evaluating {choice.name}", total=None)
            evaluation = run_main(
                evaluate_model(
                    loaded,
                    project,
                    subject=subject,
                    log_file=logs.folder / "tools.log",
                    passes=passes,
                    max_samples=max_samples,
                    say=say,
                    on_answer=lambda: progress.advance(bar),
                )
            )
        logs.are_kept = bool(evaluation.failures)
        show_evaluation(evaluation, title=choice.name, console=console)
    return {"model": choice.name, **evaluation.as_json()}


def show_evaluation(evaluation: "Evaluation", *, title: str, console: Console) -> None:
    """Print accuracy by task, without NA and overall, pass@k, and what went wrong."""
    say = sayer(console)
    overall, first = evaluation.figures(), evaluation.first
    how = "greedy" if first.temperature == 0 else f"temperature {first.temperature:g}"
    # Not the table's own title, which would wrap at the width of the table.
    say(f"{title} on {overall.num} held-out prompts, {how}")
    table = Table("task")
    for column in ("prompts", "accuracy", "95 % interval", "constant answer"):
        table.add_column(column, justify="right")
    for task, figures in evaluation.tasks().items():
        _add_row(table, task or "(no task_name)", figures)
    table.add_section()
    availability = evaluation.by_availability()
    if len(availability) > 1:
        _add_row(table, "with an answer", availability[True])
        _add_row(table, "whose answer is NA", availability[False])
    _add_row(table, "all", overall)
    console.print(table)
    for metric in evaluation.passes:
        if metric is not first or metric.k > 1:
            say(_pass_line(evaluation, metric))
    say(
        f"Wilson intervals; {_percent(evaluation.format_ok)} in the asked form; "
        f"{evaluation.num_failed} rollouts failed and are not counted"
    )
    if evaluation.mean_reward is not None:
        say(f"mean reward {evaluation.mean_reward:.3f}")
    if evaluation.num_ungraded:
        say(f"{evaluation.num_ungraded} answers could not be graded and are not counted")
    for reason, count in evaluation.most_common_failures().items():
        say(f"  {count} × {reason}")
    if evaluation.num_tool_failures or evaluation.num_timed_out:
        say(
            f"counted as they ended: {evaluation.num_tool_failures} tool calls that failed or ran "
            f"out of time, {evaluation.num_timed_out} rollouts cut by rollout.rollout_timeout"
        )


def _add_row(table: Table, name: str, figures: "Figures") -> None:
    table.add_row(
        Text(name),  # a task's, whose brackets are no markup
        str(figures.num),
        _percent(figures.value),
        _interval(figures),
        "not known" if figures.constant is None else _percent(figures.constant),
    )


def _pass_line(evaluation: "Evaluation", metric: "PassAtK") -> str:
    figures = evaluation.pass_figures(metric)
    name = f"pass@{metric.k} at temperature {metric.temperature:g}"
    if figures is None:
        return f"{name}: no prompt had {metric.k} attempts that came to an end"
    return f"{name}: {_percent(figures.value)} ({_interval(figures)}) of {figures.num} prompts"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(figures: "Figures") -> str:
    low, high = figures.interval
    return f"{100 * low:.1f} to {100 * high:.1f} %"
