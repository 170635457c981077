"""What one sees of a run: a view on a terminal, plain lines elsewhere; metrics.jsonl always."""

import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from rich.console import Console, Group

from rnow.chat.template import ChatTemplate
from rnow.evaluation.figures import Evaluation
from rnow.runs.beside import write_beside
from rnow.runs.folder import RunDirectory
from rnow.runtime.console import StartTeller, drawn, inert, is_live, sayer, start_text
from rnow.runtime.keys import hearing
from rnow.training.alarms import alarms
from rnow.training.gpu_use import GpuUse
from rnow.training.looked_into import answer_lines
from rnow.training.metrics import merge_metrics
from rnow.training.tally import Tally
from rnow.training.trackers.evaluation_report import evaluation_report
from rnow.training.trackers.reports import Reports
from rnow.training.view import eta_s, step_line, view

_log = logging.getLogger(__name__)

STOP_KEY = "q"


class Monitor:
    """Times the stages of a step, shows how far it is, and writes its line.

    monitor = Monitor(console, run=run, num_steps=40)
    async with monitor.showing(on_stop=stop.ask):
        monitor.begin_step(0)
        with monitor.stage("rollout", total=64): …; monitor.advance()
        monitor.finish_step(metrics)
    """

    def __init__(self, console: Console, *, run: RunDirectory, num_steps: int) -> None:
        self.tally = Tally()  # of what is rolled out and scored right now
        self.reports: Reports | None = None  # told of what is written, once a run is under way
        self.gpus: list[GpuUse] = []
        self._console = console
        self._show = sayer(console)
        self._run = run
        self._num_steps = num_steps
        self._history: list[Mapping[str, float]] = list(run.read_metrics())
        self._evaluations = run.read_evaluations()
        self._told: set[str] = set()
        self._tell_of_start = StartTeller(self.say)
        self._times: dict[str, float] = {}
        self._step_started = self._progressed_at = time.perf_counter()
        self._stage = ("starting", self._step_started)
        self._done = 0
        self._total: int | None = None
        self._ahead: list[dict[str, int]] = []  # the steps whose rollouts go on meanwhile
        self._seconds_per_step: list[float] = []
        self._trainer_rate = 0.0
        self._step = len(self._history)
        self._notice = ""
        self._is_shown = is_live(console)
        self._keys = f"{STOP_KEY}: save and stop"

    @asynccontextmanager
    async def showing(self, *, on_stop: Callable[[str], None]) -> AsyncIterator[None]:
        """Draw the view while the block runs, where there is a terminal; its key asks to stop."""
        if not self._is_shown:
            yield
            return

        def on_key(key: str) -> None:
            if key.lower() == STOP_KEY:
                self._keys = "stopping: what is under way ends and is saved; Ctrl-C: at once"
                on_stop(STOP_KEY)

        async with drawn(self._console, self._view):
            with hearing(sys.stdin, on_key):
                yield

    def say(self, line: str) -> None:
        """Show one line, above the view where there is one, and keep it in controller.log."""
        _log.info(line)
        self._show(line)

    def begin_step(self, step: int) -> None:
        self._step = step
        # What an interrupted attempt at this step left is rewound, here as in the file.
        self._history = [line for line in self._history if line["step"] < step]
        self._evaluations = [line for line in self._evaluations if line["step"] < step]
        self._times = {}
        self._step_started = time.perf_counter()

    @contextmanager
    def stage(
        self, name: str, *, total: int | None = None, is_timed: bool = True
    ) -> Iterator[None]:
        """Name what is going on; timed, its seconds go into the step's line as time/<name>."""
        started = self._progressed_at = time.perf_counter()
        self._stage = (name, started)
        self._notice = ""
        self._done, self._total = 0, total
        if total is not None:
            self.tally.begin()
        try:
            yield
        finally:
            if is_timed:
                self._times[f"time/{name}"] = time.perf_counter() - started

    def begin_ahead(self, step: int, *, total: int) -> Callable[[], None]:
        """Show that rollouts of `step` go on beside all else; return what counts one of them."""
        self.tally.begin()
        ahead = {"step": step, "done": 0, "total": total}
        self._ahead.append(ahead)

        def advance() -> None:
            self._progressed_at = time.perf_counter()
            ahead["done"] += 1

        return advance

    def end_ahead(self) -> None:
        """Have done with the first of them: its batch is whole."""
        del self._ahead[0]

    def expect(self, total: int) -> None:
        """Say how much the stage turns out to be: an evaluation is not due at every step."""
        self._done, self._total = 0, total
        self.tally.begin()

    def waiting(self, what: str, waited_s: float, line: str) -> None:
        """Show that something still starts, and what it said last: `what` is "student" or so."""
        if self._is_shown:
            self._notice = start_text(what, waited_s, line)
        else:
            self._tell_of_start(what, waited_s, line)

    def snapshot(self) -> dict[str, Any]:
        """Return what the run is at; "done" of "total" counts within the stage."""
        name, started = self._stage
        now = time.perf_counter()
        left_s = eta_s(
            self._history,
            num_steps=self._num_steps,
            step=self._step,
            in_step_s=now - self._step_started,
        )
        return {
            "step": self._step,
            "num_steps": self._num_steps,
            "stage": name,
            "stage_s": now - started,
            "done": self._done,
            "total": self._total,
            "ahead": self._ahead,
            "progress_s": now - self._progressed_at,
            "eta_s": left_s,
            "rollouts": self.tally.snapshot(),
            "trainer_tokens_per_s": self._trainer_rate,
            "gpus": self.gpus,
            "notice": inert(self._notice),
        }

    def advance(self) -> None:
        self._progressed_at = time.perf_counter()
        self._done += 1

    def finish_step(self, *metrics: Mapping[str, float]) -> None:
        """Write the step's line and show it; say what is alarming, each alarm once a run."""
        seconds = time.perf_counter() - self._step_started
        self._seconds_per_step.append(seconds)
        line = merge_metrics({"step": self._step}, self._times, *metrics, {"time/step": seconds})
        rate = line["tokens/action"] / max(seconds, 1e-9)
        line = merge_metrics(line, {"tokens_per_s": rate})
        self._trainer_rate = line.get("tokens/total", 0.0) / max(line.get("time/update", 0.0), 1e-9)
        self._run.append_metrics(line)
        self._history.append(line)
        if self.reports is not None:
            self.reports.log_metrics(self._step, line)
        recent = self._seconds_per_step[-5:]
        left_s = (self._num_steps - self._step - 1) * sum(recent) / len(recent)
        self.say(step_line(line, num_steps=self._num_steps, eta_s=left_s))
        for name, sentence in alarms(self._history).items():
            if name not in self._told:
                self._told.add(name)
                self.say(f"  ALARM {name}: {sentence}")

    def record_evaluation(
        self, step: int, evaluation: Evaluation, chat: ChatTemplate
    ) -> dict[str, float]:
        """Keep and show how right the student is after `step` updates; return the step's numbers.

        Trackers see the answers too, and the numbers of the last evaluation, to which no step
        belongs any more.
        """
        figures = {"step": step, **evaluation.as_json()}
        numbers = {
            "eval/accuracy": evaluation.accuracy,
            "eval/format_ok": evaluation.format_ok,
            "eval/failed": evaluation.num_failed,
            "eval/ungraded": evaluation.num_ungraded,
        }
        write_beside(self._run.beside("eval", step), answer_lines(evaluation))
        self._run.append_evaluation(figures)
        self._evaluations.append(figures)
        if self.reports is not None:
            self.reports.log_evaluation(evaluation_report(step, evaluation, chat))
            if step == self._num_steps:
                self.reports.log_metrics(step, numbers)
        self.say(
            f"eval after {step} steps: accuracy {figures['accuracy']:.3f} on "
            f"{figures['n']} held-out prompts"
        )
        return numbers

    def _view(self) -> Group:
        status = {**self.snapshot(), "keys": self._keys}
        return view(status, self._history, self._evaluations, width=self._console.width)
