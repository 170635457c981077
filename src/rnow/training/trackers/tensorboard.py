"""TensorBoard: event files in the run's own folder. To look: tensorboard --logdir runs

A run that goes on writes another file beside the first; its first line tells TensorBoard to forget
what an interrupted step had told. Texts stand in code blocks, where neither Markdown nor HTML acts.
"""

import time
from collections.abc import Mapping

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from rnow.training.trackers.base import EvaluationReport, RunInfo


class TensorBoard:
    """Writes events; each step is on the disk before the next one begins."""

    def __init__(self, info: RunInfo) -> None:
        self._writer = EventFileWriter(str(info.folder / "tensorboard"))
        if info.id is not None:
            start = SessionLog(status=SessionLog.START)
            self._add(info.first_step, session_log=start)
        info.keep_id("tensorboard")

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=name, simple_value=one) for name, one in metrics.items()]
        self._add(step, summary=Summary(value=values))
        self._writer.flush()

    def log_evaluation(self, report: EvaluationReport) -> None:
        head, *rows = (" | ".join(map(_cell, line)) for line in (report.columns, *report.rows))
        lines = (head, " | ".join(["---"] * len(report.columns)), *rows)
        table = "\n".join(f"| {line} |" for line in lines)
        answers = "\n\n".join(
            f"{which}, {verdict}\n\n{_code(said)}" for which, verdict, said in report.transcripts
        )
        texts = {
            "evaluation/figures": table,
            "evaluation/transcripts": f"{report.note}\n\n{answers}",
        }
        values = [
            Summary.Value(
                tag=name,
                metadata=create_summary_metadata(display_name=name, description=""),
                tensor=make_tensor_proto(text),
            )
            for name, text in texts.items()
        ]
        self._add(report.step, summary=Summary(value=values))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, **fields: object) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, **fields))


def open_tracker(info: RunInfo) -> TensorBoard:
    return TensorBoard(info)


def _cell(value: str | float) -> str:
    """A name of a task is text, not Markdown."""
    return (
        f"`{value.translate({96: 39, 124: 47, 10: 32})}`"
        if isinstance(value, str)
        else f"{value:g}"
    )


def _code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))
