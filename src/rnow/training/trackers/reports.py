"""All trackers of a run, each in a thread of its own: one that fails or hangs holds nothing up.

monitor ─▶ queue ─▶ thread ─▶ tracker      × trainer.report_to
                       └─ raises ─▶ said once, with what to do; the run goes on without it
"""

import importlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from rnow.config.cautions import install_tracker, is_installed
from rnow.runtime.atomic_files import replace_file
from rnow.runtime.console import inert
from rnow.training.trackers.base import REMEDIES, EvaluationReport, RunInfo, Tracker

_log = logging.getLogger(__name__)

Say = Callable[[str], None]
CLOSE_LIMIT_S = 60.0  # for all of them, at the end of a run


class Reports:
    """Tells every tracker of a run what there is; raises nothing.

    with Reports(("tensorboard",), info) as reports: reports.log_metrics(0, {"reverse_kl": 0.5})
    """

    def __init__(
        self, names: Sequence[str], info: RunInfo, *, limit_s: float = CLOSE_LIMIT_S
    ) -> None:
        self._limit_s = limit_s
        self._feeds: list[_Feed] = []
        ids = _Ids(info.folder / "trackers.json")
        # Which are not installed was said when the settings were read.
        for name in filter(is_installed, dict.fromkeys(names)):
            self._feeds.append(_Feed(name, info, ids))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait until all is told, but not for ever: what was not taken by then is lost."""
        for feed in self._feeds:
            feed.end()
        by = time.monotonic() + self._limit_s
        for feed in self._feeds:
            feed.join(max(0.0, by - time.monotonic()))

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Names are those of metrics.jsonl."""
        for feed in self._feeds:
            feed.put(lambda tracker: tracker.log_metrics(step, metrics))

    def log_evaluation(self, report: EvaluationReport) -> None:
        for feed in self._feeds:
            feed.put(lambda tracker: tracker.log_evaluation(report))


class _Feed:
    """One tracker's thread, and what waits to be told to it."""

    def __init__(self, name: str, info: RunInfo, ids: "_Ids") -> None:
        self._name = name
        self._say = info.say
        self._info = replace(info, id=ids.of(name), keep_id=lambda id: ids.keep(name, id))
        self._queue: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        # A daemon: what hangs in it must not keep the process.
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, tell: Callable[[Tracker], None]) -> None:
        if self._thread.is_alive():
            self._queue.put(tell)

    def end(self) -> None:
        self._queue.put(None)

    def join(self, limit_s: float) -> None:
        self._thread.join(limit_s)
        if self._thread.is_alive():
            self._say(
                f"{self._name} has not taken all within {limit_s:.0f} s; metrics.jsonl has it"
            )

    def _run(self) -> None:
        # Whatever a program of others raises, or exits with, costs its record and not the run.
        try:
            module = importlib.import_module(f"rnow.training.trackers.{self._name}")
            tracker: Tracker = module.open_tracker(self._info)
            while (tell := self._queue.get()) is not None:
                tell(tracker)
            tracker.close()
        except BaseException as error:
            _log.warning("%s has failed", self._name, exc_info=error)
            lines = inert(str(error)).strip().splitlines() or [type(error).__name__]
            is_broken = isinstance(error, ImportError)
            remedy = install_tracker(self._name) if is_broken else REMEDIES[self._name]
            self._say(
                f"trainer.report_to: {self._name} is told nothing more: {lines[0][:300]}. The run "
                f"goes on, and metrics.jsonl has all of it; {remedy}"
            )


class _Ids:
    """What each tracker calls this run, in the run's folder."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def of(self, name: str) -> str | None:
        return self._read().get(name)

    def keep(self, name: str, id: str) -> None:
        with self._lock:
            replace_file(self._file, json.dumps({**self._read(), name: id}, indent=1) + "\n")

    def _read(self) -> dict[str, str]:
        try:
            ids: dict[str, str] = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return ids
