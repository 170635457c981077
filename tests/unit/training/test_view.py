"""The view on a real pseudo-terminal, read by a terminal emulator: what is where, at any width."""

import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pyte
import pytest
from rich.console import Console

from rnow.runs.folder import RunDirectory
from rnow.runtime.console import make_live, sayer
from rnow.training.view import eta_s, sparkline, step_line, view

HEIGHT = 60
HOSTILE = (
    "plain",
    "日本語の回答は株式会社です" * 20,
    "\x1b[2J\x1b[H\x1b]0;title\x07 \u202egpj.exe \u0007\r\b\b",
    "e\u0301\u0301\u0301 👩‍👩‍👧 🇩🇪 ✈\ufe0f a\tb\nc\u2028d",
    "x" * 1_000_000,
)
LINES = [
    {"step": step, "reverse_kl": 1 / (1 + step), "time/step": 10.0, "tokens/action": 100.0}
    for step in range(50)
]


def make_status(**changes: Any) -> dict[str, Any]:
    rollouts = {
        "running": 5,
        "done": 59,
        "failed": 2,
        "turns": 131,
        "calls": {"ok": 100, "timeout": 3, "model_error": 12},
        "student_tokens_per_s": 1234.5,
        "teacher_tokens_per_s": 45678.0,
        "answer": "The company is Acme.",
    }
    return {
        "step": 3,
        "num_steps": 20,
        "stage": "rollout",
        "stage_s": 75.2,
        "done": 57,
        "total": 64,
        "eta_s": 170.0,
        "rollouts": {**rollouts, **changes.pop("rollouts", {})},
        "trainer_tokens_per_s": 2200.0,
        "gpus": [{"index": 0, "used_mib": 72909, "total_mib": 81559, "use_percent": 98}],
        "keys": "q: save and stop",
        **changes,
    }


def rows(status: dict[str, Any], *, width: int) -> list[str]:
    lines = view(status, LINES[:4], [{"accuracy": 0.25}, {"accuracy": 0.5}], width=width)
    return [line.plain for line in lines.renderables]


class Terminal:
    """A pseudo-terminal, and what stands on its screen."""

    def __init__(self, width: int, height: int = HEIGHT) -> None:
        self.screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self.screen)
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.file = os.fdopen(slave, "w", encoding="utf-8")
        self.console = Console(file=self.file, width=width, height=height, markup=False)
        self._num_read = 0

    def read(self) -> list[str]:
        """Return the rows of the screen once all that was written has arrived."""
        self._num_read += 1
        end = f"\x1b]2;{self._num_read}\x07"
        self.file.write(end)
        self.file.flush()
        while self.screen.title != str(self._num_read):
            self._stream.feed(os.read(self.master, 65536))
        return [row.rstrip() for row in self.screen.display]

    def close(self) -> None:
        self.file.close()
        os.close(self.master)


@contextmanager
def terminal(width: int) -> Iterator[Terminal]:
    opened = Terminal(width)
    try:
        yield opened
    finally:
        opened.close()


def wrapped(lines: Sequence[str], width: int) -> list[str]:
    return [line[at : at + width].rstrip() for line in lines for at in range(0, len(line), width)]


def test_all_of_a_run_is_on_the_view() -> None:
    assert rows(make_status(), width=200) == [
        "step 4/20  rollout 57/64  1 min 15 s  ETA 2 min 50 s  ━━━─────────────────",
        "rollouts    59 done, 5 running, 2 tries failed, 131 turns",
        "tool calls  115: model_error 12, ok 100, timeout 3",
        "reverse_kl  0.2500  █▃▂▁",
        "accuracy    0.500  ▁█",
        "speed       student 1,234  teacher 45,678  trainer 2,200 tokens/s",
        "GPU 0       71.2 of 79.6 GiB, 98 % busy",
        "answer      The company is Acme.",
        "q: save and stop",
    ]


def test_two_steps_under_way_are_both_on_the_view() -> None:
    ahead = {"step": 4, "done": 12, "total": 64}
    status = make_status(stage="update", done=0, total=None, ahead=[ahead])
    assert rows(status, width=200)[:2] == [
        "step 4/20  update  1 min 15 s  ETA 2 min 50 s  ━━━─────────────────",
        "meanwhile rollouts of step 5: 12 of 64",
    ]
    two = {**status, "ahead": [{"step": 3, "done": 60, "total": 64}, ahead]}
    told = "meanwhile rollouts of step 4: 60 of 64, of step 5: 12 of 64"
    assert rows(two, width=200)[1] == told
    assert rows({**status, "ahead": []}, width=200)[1].startswith("rollouts    59 done")


def test_a_run_that_has_just_begun_takes_two_lines() -> None:
    status = {
        "step": 0,
        "num_steps": 5,
        "stage": "starting the engines",
        "stage_s": 3.0,
        "done": 0,
        "total": None,
        "notice": "the student's server is starting, 3 s: loading",
    }
    shown = [line.plain for line in view(status, [], [], width=60).renderables]
    assert shown == [
        "step 1/5  starting the engines  3 s  ────────────────────",
        "the student's server is starting, 3 s: loading",
    ]


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_view_never_tears(width: int) -> None:
    said = []
    with terminal(width) as on:
        say, status = sayer(on.console), make_status()
        live = make_live(on.console, lambda: view(status, LINES[:4], [], width=width))
        with live:
            for number, answer in enumerate(HOSTILE):
                # It grows and shrinks: GPUs come and go, tools are called or not.
                calls = {} if number % 2 else {"ok": number}
                status = make_status(
                    done=number,
                    gpus=make_status()["gpus"] * (number % 3),
                    rollouts={"answer": answer, "calls": calls},
                )
                line = f"step {number + 1}/20  " + "a line that is said " * (1 + 8 * (number % 2))
                say(line)
                said.append(line)
                live.refresh()
                shown = [row.plain for row in view(status, LINES[:4], [], width=width).renderables]
                expected = [*wrapped(said, width), *(row.rstrip() for row in shown)]
                assert on.read() == expected + [""] * (HEIGHT - len(expected))
        # In the end the lines alone are there, as without a view.
        expected = wrapped(said, width)
        assert on.read() == expected + [""] * (HEIGHT - len(expected))
        assert not on.screen.cursor.hidden


def test_no_row_is_wider_than_the_terminal() -> None:
    for width in (1, 60, 200):
        for answer in HOSTILE:
            status = make_status(rollouts={"answer": answer}, notice=answer, stage=answer[:100])
            lines = view(status, LINES, [], width=width).renderables
            assert max(line.cell_len for line in lines) <= width
            assert not [line for line in lines if not line.plain.isprintable()]


def test_a_sparkline_shows_the_last_steps_from_least_to_most() -> None:
    assert sparkline([4.0, 2.0, 1.0, 1.0]) == "█▃▁▁"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline(list(range(100))) == sparkline(list(range(68, 100)))


def test_numbers_that_are_not_finite_leave_no_mark() -> None:
    lines = [{"reverse_kl": 1.0}, {"reverse_kl": float("nan")}, {}, {"reverse_kl": 3.0}]
    shown = [line.plain for line in view(make_status(), lines, [], width=80).renderables]
    assert "reverse_kl  3.0000  ▁█" in shown


def test_the_time_left_is_that_of_the_last_five_steps() -> None:
    history = [{"time/step": seconds} for seconds in (1000.0, 4.0, 4.0, 4.0, 4.0, 4.0)]
    assert eta_s(history, num_steps=10, step=6, in_step_s=1.0) == 15.0
    assert eta_s(history, num_steps=10, step=6, in_step_s=100.0) == 12.0
    assert eta_s([], num_steps=10, step=0, in_step_s=1.0) is None


SHOWING = """
import asyncio, sys
from pathlib import Path
from rich.console import Console
from rnow.errors import Interrupted
from rnow.runs.folder import RunDirectory
from rnow.runtime.signals import StopRequest
from rnow.training.monitor import Monitor

async def main():
    run = RunDirectory(Path(sys.argv[1]))
    run.open()
    monitor = Monitor(Console(markup=False), run=run, num_steps=5)
    with StopRequest() as stop:
        async with monitor.showing(on_stop=stop.ask):
            monitor.begin_step(2)
            with monitor.stage("rollout", total=7):
                monitor.advance()
                try:
                    await stop.cut(asyncio.sleep(60))
                except Interrupted as why:
                    monitor.say(f"stopped by {why}, {why.exit_code}")
                if "stubborn" in sys.argv:
                    await asyncio.sleep(60)

asyncio.run(main())
"""


def run_in_terminal(folder: Path, *words: str) -> tuple[int, int]:
    """Start the program above with a terminal of its own; return its pid and the terminal."""
    pid, master = pty.fork()
    if pid == 0:
        ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environ = {**os.environ, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
        os.execve(sys.executable, [sys.executable, "-c", SHOWING, str(folder), *words], environ)
    return pid, master


def read_until(master: int, text: str) -> str:
    """Return all that was written until `text` is; an ended program's terminal is at its end."""
    seen = b""
    while text.encode() not in seen:
        try:
            seen += os.read(master, 65536)
        except OSError:
            raise AssertionError(seen.decode()) from None
    return seen.decode()


def test_q_asks_to_stop_as_the_first_signal_does(tmp_path: Path) -> None:
    pid, master = run_in_terminal(tmp_path / "run")
    read_until(master, "step 3/5  rollout 1/7")
    echo = termios.tcgetattr(master)[3] & termios.ECHO
    os.write(master, b"xq")
    if "\x1b[?25h" not in read_until(master, "stopped by q, 130"):
        read_until(master, "\x1b[?25h")  # the cursor is shown again
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not echo
    # The terminal is as it was.
    assert termios.tcgetattr(master)[3] & termios.ECHO
    os.close(master)


def test_a_signal_after_q_ends_it_at_once_and_gives_the_terminal_back(tmp_path: Path) -> None:
    pid, master = run_in_terminal(tmp_path / "run", "stubborn")
    read_until(master, "step 3/5  rollout 1/7")
    os.write(master, b"q")
    read_until(master, "stopped by q, 130")
    os.kill(pid, signal.SIGINT)
    read_until(master, "\x1b[?25h")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert termios.tcgetattr(master)[3] & termios.ECHO
    os.close(master)


def write_lines(folder: Path, *lines: dict[str, Any]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_line_names_publishing_and_evaluation_where_they_take_long() -> None:
    line = {**LINES[0], "mismatch_kl": 0.0, "rollout/turns": 2.0, "time/step": 12.0}
    line |= {"time/rollout": 2.2, "time/teacher": 0.5, "time/update": 2.3, "time/publish": 6.0}
    said = step_line({**line, "time/eval": 0.0}, num_steps=4, eta_s=3)
    assert "12.0 s (rollout 2.2, teacher +0.5, update 2.3, publish 6.0)  ETA" in said
    said = step_line({**line, "time/publish": 1.0, "time/eval": 7.0}, num_steps=4, eta_s=3)
    assert "12.0 s (rollout 2.2, teacher +0.5, update 2.3, eval 7.0)  ETA" in said


def test_a_run_is_watched_in_another_terminal_until_q_and_goes_on(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "one")
    run.open()
    status = {**make_status(), "time": time.time() + 3600, "progress_s": 1.0}
    run.status_file.write_text(json.dumps({**status, "waits": [], "num_waits": 0}))
    pid, master = pty.fork()
    if pid == 0:
        ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        words = [sys.executable, "-m", "rnow", "status", str(tmp_path), "--watch", "one"]
        os.execve(sys.executable, words, {**os.environ, "TERM": "xterm"})
    read_until(master, "q: look away; the run goes on")
    os.write(master, b"q")
    read_until(master, "one: running, pid ")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert termios.tcgetattr(master)[3] & termios.ECHO
    os.close(master)
    assert run.holder() is not None
    run.close()


def test_a_run_is_watched_from_elsewhere_as_lines_without_a_terminal(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / ".lock").touch()
    (run / "state.json").write_text(json.dumps({"step": 2, "num_steps": 4, "finished": False}))
    more = {"mismatch_kl": 0.0, "rollout/turns": 2.0, "time/rollout": 6.0}
    more |= {"time/teacher": 1.0, "time/update": 3.0}
    write_lines(run, *({**line, **more} for line in LINES[:2]))
    words = [sys.executable, "-m", "rnow", "status", "--watch", "one"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "step 1/4  reverse_kl 1.0000  mismatch_kl 0.0e+00  action tokens 100  turns 2.00  10.0 s "
        "(rollout 6.0, teacher +1.0, update 3.0)  ETA 30 s",
        "step 2/4  reverse_kl 0.5000  mismatch_kl 0.0e+00  action tokens 100  turns 2.00  10.0 s "
        "(rollout 6.0, teacher +1.0, update 3.0)  ETA 20 s",
        "runs/one: not running; 2 of 4 steps are saved. To go on: rnow run . --name one",
    ]
    words[-1] = "two"
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "Error: two is no run of ., nor a run's folder; to see them: rnow status\n",
    )
