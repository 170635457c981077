"""A run's rollouts with all that it keeps of each: those it learned from, and held-out answers.

Journals are read for at most MAX_STEPS steps, evenly spread, first and last among them, and
held-out answers of at most MAX_EVALUATIONS: a run of weeks has more than a page could hold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rnow.records import FloatArray, IntArray, Trajectory
from rnow.runs.archive import journals
from rnow.runs.beside import read_beside
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import read_graded, trajectory_from_json
from rnow.training.metrics import repetition

MAX_STEPS = 50
MAX_EVALUATIONS = 6


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One rollout, and what is known of it; None: not kept, or there is no such thing.

    Vectors have one entry a sampled token.
    """

    trajectory: Trajectory
    held_out: int | None = None  # updates before the evaluation; None: it was learned from
    right: bool | None = None
    extracted: str | None = None  # what its grader read
    expected: str | None = None
    teacher: FloatArray | None = None  # nats
    student: FloatArray | None = None  # nats, the trainer's own, before its update
    favourite_ids: IntArray | None = None  # [sampled tokens, favourites] the teacher's, best first
    favourite_logprobs: FloatArray | None = None

    @property
    def name(self) -> str:
        """Its name in the page: "3.17.0", or "eval-20.17.0" for a held-out answer."""
        id = self.trajectory.id
        return (
            str(id) if self.held_out is None else f"eval-{self.held_out}.{id.prompt}.{id.rollout}"
        )

    @cached_property
    def sampler(self) -> FloatArray:
        return self.trajectory.sampler_logprobs[self.trajectory.action_mask]

    @cached_property
    def gaps(self) -> FloatArray | None:
        """What was paid: the student's own log-probability less the teacher's, nats a token."""
        if self.teacher is None:
            return None
        return (self.sampler if self.student is None else self.student) - self.teacher

    @cached_property
    def mean_gap(self) -> float | None:
        return None if self.gaps is None else float(self.gaps.mean()) if self.gaps.size else 0.0

    @cached_property
    def repetition(self) -> float:
        return repetition(self.trajectory)


def steps_read(run: RunDirectory) -> list[Path]:
    """Return the journals that a report reads, in order."""
    return _spread(journals(run.path / "trajectories"), MAX_STEPS)


def evaluations_read(run: RunDirectory) -> list[Path]:
    """Return the files of held-out answers that a report reads, in order."""
    found = sorted((run.path / "trajectories").glob("eval-[0-9]*.jsonl.zst"))
    return _spread(found, MAX_EVALUATIONS)


def read_rollouts(run: RunDirectory) -> Iterator[Rollout]:
    """Yield the rollouts that are read, one step in memory at a time; held-out ones last."""
    for path in steps_read(run):
        step = int(path.stem)
        updates = _by_name(read_beside(run.beside("update", step)))
        favourites = _by_name(read_beside(run.beside("favourites", step)))
        for scored, right in read_graded(path):
            one = scored.trajectory
            name = (one.id.prompt, one.id.rollout)
            yield Rollout(
                trajectory=one,
                right=right,
                teacher=scored.teacher_logprobs[one.action_mask],
                student=_vector(updates.get(name), one),
                **_favourites(favourites.get(name), one),
            )
    for path in evaluations_read(run):
        step = int(path.name.partition(".")[0].removeprefix("eval-"))
        for line in read_beside(path):
            yield Rollout(
                trajectory=trajectory_from_json(line),
                held_out=step,
                right=line["right"],
                extracted=line["extracted"],
                expected=line["expected"],
            )


def _spread(found: Sequence[Path], most: int) -> list[Path]:
    if len(found) <= most:
        return list(found)
    return [found[i * (len(found) - 1) // (most - 1)] for i in range(most)]


def _by_name(lines: Sequence[dict[str, Any]]) -> dict[tuple[int, int], dict[str, Any]]:
    return {(line["prompt"], line["rollout"]): line for line in lines}


def _vector(line: dict[str, Any] | None, trajectory: Trajectory) -> FloatArray | None:
    # A rollout may have been made again after a kill: then its line is another one's.
    if line is None or len(line["logprobs"]) != trajectory.num_actions:
        return None
    return np.asarray(line["logprobs"], dtype=np.float32)


def _favourites(line: dict[str, Any] | None, trajectory: Trajectory) -> dict[str, Any]:
    if line is None or len(line["ids"]) != trajectory.num_actions:
        return {}
    return {
        "favourite_ids": np.asarray(line["ids"], dtype=np.int32),
        "favourite_logprobs": np.asarray(line["logprobs"], dtype=np.float32),
    }
