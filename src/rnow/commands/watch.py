"""`rnow status --watch`: the view of a run from another terminal, made from the run's files."""

import asyncio
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from rnow.errors import UsageError
from rnow.runs.folder import RunDirectory
from rnow.runtime.console import DRAW_EVERY_S, is_live, make_live, sayer
from rnow.runtime.keys import hearing
from rnow.training.monitor import STOP_KEY
from rnow.training.view import eta_s, step_line, view

_KEYS = f"{STOP_KEY}: look away; the run goes on"
SILENT_AFTER_S = 10.0


def find_run(name: str, project: Path) -> RunDirectory:
    """Return the run that is called so, or whose folder it is; UsageError where there is none."""
    for folder in (Path(name), project / "runs" / name):
        if (folder / ".lock").is_file():
            return RunDirectory(folder)
    raise UsageError(f"{name} is no run of {project}, nor a run's folder; to see them: rnow status")


async def watch_run(run: RunDirectory, console: Console) -> None:
    """Show the run until it has ended, or until someone presses q; without a terminal, its steps.

    Only files of the run are read: it may be that of another user, on a disk of another machine.
    """
    if not is_live(console):
        await _say_steps(run, console)
        return
    away = asyncio.Event()
    live = make_live(console, lambda: _draw(run, width=console.width))
    with live, hearing(sys.stdin, lambda key: away.set() if key.lower() == STOP_KEY else None):
        while run.holder() is not None and not away.is_set():
            live.refresh()
            with suppress(TimeoutError):
                await asyncio.wait_for(away.wait(), DRAW_EVERY_S)


def _draw(run: RunDirectory, *, width: int) -> Group:
    status = _read_status(run)
    if status is None:
        return Group(Text(f"{run.path}: starting", no_wrap=True, overflow="ellipsis"))
    silent_s = time.time() - status["time"]
    if silent_s > SILENT_AFTER_S:
        status["notice"] = (
            f"has said nothing for {silent_s:.0f} s; where it stands: {run.controller_log}"
        )
    return view({**status, "keys": _KEYS}, run.read_metrics(), run.read_evaluations(), width=width)


async def _say_steps(run: RunDirectory, console: Console) -> None:
    say, num_said = sayer(console), 0
    while True:
        is_running = run.holder() is not None  # before the last look, which then misses nothing
        lines, num_steps = run.read_metrics(), int(run.state().get("num_steps", 0))
        for number in range(num_said, len(lines)):
            left_s = eta_s(
                lines[: number + 1],
                num_steps=num_steps,
                step=lines[number]["step"] + 1,
                in_step_s=0.0,
            )
            say(step_line(lines[number], num_steps=num_steps, eta_s=left_s or 0.0))
        num_said = len(lines)
        if not is_running:
            return
        await asyncio.sleep(DRAW_EVERY_S)


def _read_status(run: RunDirectory) -> dict[str, Any] | None:
    try:
        status: dict[str, Any] = json.loads(run.status_file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return status
