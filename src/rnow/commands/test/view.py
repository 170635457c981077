"""Rollouts as a person reads them on a terminal: transcripts, a line each, what the tools did.

What models, pages and rewards wrote is shown as it is: no markup of theirs colours a line, and no
control character of theirs reaches the terminal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rnow.chat.conversation import chat_split, turn_text
from rnow.chat.template import ChatTemplate
from rnow.commands.test.sample import Sample
from rnow.commands.test.tool_statistics import error_code, tool_statistics
from rnow.records import ToolCallRecord, Trajectory, Turn
from rnow.runtime.console import inert

_TEAL = "#14B8A6"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """After how many characters texts are cut; None: nowhere."""

    said: int | None  # of prompts and turns
    results: int | None  # of tool results


def show_transcript(sample: Sample, chat: ChatTemplate, *, cuts: Cuts, console: Console) -> None:
    """Print prompt, turns, calls and results; thinking is dimmed."""
    entry = f"entry {sample.prompt.index} (line {sample.prompt.line})"
    console.rule(f"Rollout {sample.number} · {entry}", align="left", style=_TEAL)
    for message in sample.prompt.messages:
        content = message.get("content") or ""
        _print(console, str(message["role"]), str(content), style="", limit=cuts.said)
    trajectory = sample.trajectory
    if trajectory is not None:
        for number, turn in enumerate(trajectory.turns, start=1):
            _show_turn(trajectory, turn, chat, number=number, cuts=cuts, console=console)


def show_line(sample: Sample, *, project: Path, console: Console) -> None:
    """Print how a rollout went, in one line, and under it what was wrong with it."""
    text = Text(f"Rollout {sample.number}: ", style=f"bold {_TEAL}")
    rewards, trajectory = sample.rewards, sample.trajectory
    if trajectory is None:
        text.append(inert(f"✗ {sample.error}"), style="red")
    else:
        text.append("✓", style="green")
        if rewards.total is not None:
            style = "red" if rewards.errors else "green"
            values = (f"{name}={_number(value)}" for name, value in rewards.values.items())
            text.append(f" reward={rewards.total:.3f}  [{', '.join(values)}]", style=style)
        text.append(f" {_how_it_went(sample, trajectory)}", style="default")
    text.append(f"  → {sample.file.relative_to(project)}", style="dim")
    console.print(text, soft_wrap=True)
    for error in sample.errors:
        console.print(Text(inert(f"    ⚠ {error}"), style="yellow"), soft_wrap=True)


def show_tools(samples: Sequence[Sample], console: Console) -> None:
    """Print a table of what each tool did; nothing where none was called."""
    trajectories = [item.trajectory for item in samples if item.trajectory is not None]
    statistics = tool_statistics(trajectories)
    if not statistics:
        return
    table = Table("tool")
    for column in ("calls", "errors", "truncated", "mean s", "max s"):
        table.add_column(column, justify="right")
    for tool in statistics:
        errors = ", ".join(f"{code} {count}" for code, count in tool.errors.items())
        table.add_row(
            Text(inert(tool.name or "(unreadable)")),
            str(tool.num_calls),
            errors or "0",
            str(tool.num_truncated),
            f"{tool.mean_s:.2f}",
            f"{tool.max_s:.2f}",
        )
    console.print(table)


def _show_turn(
    trajectory: Trajectory,
    turn: Turn,
    chat: ChatTemplate,
    *,
    number: int,
    cuts: Cuts,
    console: Console,
) -> None:
    about = f"{turn.end - turn.start} tokens, {turn.duration_s:.1f} s"
    console.print(Text(f"turn {number}", style="bold").append(f" ({about})", style="dim"))
    thinking, said = chat_split(turn_text(trajectory, turn, chat), chat)
    if thinking:
        _print(console, "", thinking, style="dim italic", limit=cuts.said)
    # A call is shown with what came of it, so not a second time in the turn's text.
    said = chat.before_calls(said).strip() if turn.tool_calls else said.strip()
    if said:
        _print(console, "", said, style="", limit=cuts.said)
    for call in turn.tool_calls:
        _show_call(call, cuts=cuts, console=console)


def _show_call(call: ToolCallRecord, *, cuts: Cuts, console: Console) -> None:
    code = error_code(call)
    line = Text(inert(f"  → {call.name or 'unreadable call'} "), style=_TEAL)
    line.append(inert(call.arguments), style="default")
    line.append(f"  {code or 'ok'}", style="red" if code else "green")
    line.append(f", {call.duration_s:.2f} s", style="dim")
    if call.truncated:
        line.append(", cut to rollout.max_tool_response", style="dim")
    console.print(line, soft_wrap=True)
    _print(console, "", call.text, style="dim", limit=cuts.results, margin="    │ ")


def _print(
    console: Console, name: str, text: str, *, style: str, limit: int | None, margin: str = "  "
) -> None:
    """Print a text of several lines, up to `limit` characters of it."""
    if name:
        console.print(Text(name, style="bold"))
    shown = text if limit is None else text[:limit]
    for line in shown.splitlines():
        console.print(Text(margin + inert(line), style=style), soft_wrap=True)
    if len(shown) < len(text):
        more = f"{margin}… {len(text) - len(shown)} more characters; -v shows all"
        console.print(Text(more, style="dim"), soft_wrap=True)


def _how_it_went(sample: Sample, trajectory: Trajectory) -> str:
    words = [
        f"{trajectory.end_reason}",
        _count(len(trajectory.turns), "turn"),
        _count(len(trajectory.tool_calls), "call"),
        _count(trajectory.num_tokens, "token"),
        f"{trajectory.duration_s:.1f} s",
    ]
    if sample.grade is not None:
        expected = sample.prompt.metadata["expected_answer"]
        words.append("correct" if sample.grade.correct else f"wrong (expected {expected})")
    return ", ".join(words)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3f}"
