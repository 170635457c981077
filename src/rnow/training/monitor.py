"""What one sees of a run: a bar on a terminal, plain lines elsewhere; metrics.jsonl always."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console

from rnow.chat.template import ChatTemplate
from rnow.evaluation.figures import Evaluation
from rnow.runs.folder import RunDirectory
from rnow.runtime.console import StartTeller, duration, make_bar, sayer, start_text
from rnow.training.alarms import alarms
from rnow.training.metrics import merge_metrics
from rnow.training.trackers.evaluation_report import evaluation_report
from rnow.training.trackers.reports import Reports

_log = logging.getLogger(__name__)


class Monitor:
    """Times the stages of a step, shows how far it is, and writes its line.

    with Monitor(console, run=run, num_steps=40) as monitor:
        monitor.begin_step(0)
        with monitor.stage("rollout", total=64): …; monitor.advance()
        monitor.finish_step(metrics)
    """

    def __init__(self, console: Console, *, run: RunDirectory, num_steps: int) -> None:
        self._console = console
        self._show = sayer(console)
        self._run = run
        self._num_steps = num_steps
        self.reports: Reports | None = None  # told of what is written, once a run is under way
        self._history: list[Mapping[str, float]] = list(run.read_metrics())
        self._told: set[str] = set()
        self._tell_of_start = StartTeller(self.say)
        self._times: dict[str, float] = {}
        self._step_started = self._progressed_at = time.perf_counter()
        self._stage = ("starting", self._step_started)
        self._seconds_per_step: list[float] = []
        self._step = len(self._history)
        self._progress = make_bar(console)
        self._bar = self._progress.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Show one line, above the bar where there is one, and keep it in controller.log."""
        _log.info(line)
        self._show(line)

    def begin_step(self, step: int) -> None:
        self._step = step
        # What an interrupted attempt at this step left is rewound, here as in the file.
        self._history = [line for line in self._history if line["step"] < step]
        self._times = {}
        self._step_started = time.perf_counter()

    @contextmanager
    def stage(
        self, name: str, *, total: int | None = None, is_timed: bool = True
    ) -> Iterator[None]:
        """Name what is going on; timed, its seconds go into the step's line as time/<name>."""
        self._progress.reset(
            self._bar, total=total, description=f"step {self._step + 1}/{self._num_steps}  {name}"
        )
        started = self._progressed_at = time.perf_counter()
        self._stage = (name, started)
        try:
            yield
        finally:
            if is_timed:
                self._times[f"time/{name}"] = time.perf_counter() - started

    def waiting(self, what: str, waited_s: float, line: str) -> None:
        """Show that something still starts, and what it said last: `what` is "student" or so."""
        if self._console.is_terminal:
            text = start_text(what, waited_s, line)
            self._progress.update(self._bar, description=text[: self._console.width - 50])
        else:
            self._tell_of_start(what, waited_s, line)

    def snapshot(self) -> dict[str, Any]:
        """Return what the run is at; "done" of "total" counts within the stage."""
        name, started = self._stage
        now = time.perf_counter()
        bar = self._progress.tasks[self._bar]
        return {
            "step": self._step,
            "num_steps": self._num_steps,
            "stage": name,
            "stage_s": now - started,
            "done": int(bar.completed),
            "total": None if bar.total is None else int(bar.total),
            "progress_s": now - self._progressed_at,
        }

    def advance(self) -> None:
        self._progressed_at = time.perf_counter()
        self._progress.advance(self._bar)

    def finish_step(self, *metrics: Mapping[str, float]) -> None:
        """Write the step's line and show it; say what is alarming, each alarm once a run."""
        seconds = time.perf_counter() - self._step_started
        self._seconds_per_step.append(seconds)
        line = merge_metrics({"step": self._step}, self._times, *metrics, {"time/step": seconds})
        rate = line["tokens/action"] / max(seconds, 1e-9)
        line = merge_metrics(line, {"tokens_per_s": rate})
        self._run.append_metrics(line)
        self._history.append(line)
        if self.reports is not None:
            self.reports.log_metrics(self._step, line)
        self.say(self._summary(line))
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
        figures = evaluation.as_json()
        numbers = {
            "eval/accuracy": evaluation.accuracy,
            "eval/format_ok": evaluation.format_ok,
            "eval/failed": evaluation.num_failed,
        }
        self._run.append_evaluation({"step": step, **figures})
        if self.reports is not None:
            self.reports.log_evaluation(evaluation_report(step, evaluation, chat))
            if step == self._num_steps:
                self.reports.log_metrics(step, numbers)
        self.say(
            f"eval after {step} steps: accuracy {figures['accuracy']:.3f} on "
            f"{figures['n']} held-out prompts"
        )
        return numbers

    def _summary(self, line: Mapping[str, float]) -> str:
        left = self._num_steps - self._step - 1
        recent = self._seconds_per_step[-5:]
        eta = left * sum(recent) / len(recent)
        if line.get("trainer/skipped"):
            return f"step {self._step + 1}/{self._num_steps}  SKIPPED: numbers were not finite"
        return (
            f"step {self._step + 1}/{self._num_steps}"
            f"  reverse_kl {line['reverse_kl']:.4f}"
            f"  mismatch_kl {line['mismatch_kl']:.1e}"
            f"  action tokens {line['tokens/action']:.0f}"
            f"  turns {line['rollout/turns']:.2f}"
            f"  {line['time/step']:.1f} s (rollout {line['time/rollout']:.1f},"
            f" teacher +{line['time/teacher']:.1f}, update {line['time/update']:.1f})"
            f"  ETA {duration(eta)}"
        )
