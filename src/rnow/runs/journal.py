"""Scored trajectories on disk: one JSON object a line, one file a step.

The file of the running step is its journal: a trajectory is appended, and handed to the operating
system, as soon as it is scored, so that a killed run rolls out only what is missing; what a machine
that lost power forgets of it is rolled out again. Files of old steps are compressed (archive.py).
Log-probabilities are written for action tokens alone, as the shortest decimals that read back to
the same float32.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from pydantic import TypeAdapter

from rnow.records import (
    BoolArray,
    EndReason,
    FloatArray,
    RolloutId,
    ScoredTrajectory,
    Trajectory,
    Turn,
)
from rnow.runs.archive import read_bytes
from rnow.runtime.atomic_files import telling_if_full
from rnow.runtime.kill_points import point

_TURNS = TypeAdapter(tuple[Turn, ...])


class Journal:
    """Appends to one step's file. Made anew for each step; what is there already stays."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._end_torn_line(path)
        # Without a buffer: on a full disk it would be written once more at the close.
        self._file = path.open("ab", buffering=0)

    @staticmethod
    def _end_torn_line(path: Path) -> None:
        """A kill in mid-write leaves half a line; without an end it would swallow the next one."""
        if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def append(self, scored: ScoredTrajectory, *, right: bool | None = None) -> None:
        """Add a trajectory; `right`: what a grader says of its answer, None where nothing does."""
        verdict = {} if right is None else {"right": right}
        line = _line({**scored_to_json(scored), **verdict})
        with telling_if_full(self._path, needs_bytes=len(line)):
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
        point("journal/appended")

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def read_journal(path: Path, *, policy_version: int | None = None) -> tuple[ScoredTrajectory, ...]:
    """Return the whole lines of a step's file, in either form, each id once, ordered by id.

    With `policy_version`, only trajectories that these very weights sampled, all of them.
    Torn lines are passed over: they were never counted as done.
    """
    return tuple(scored for scored, _ in read_graded(path, policy_version=policy_version))


def read_graded(
    path: Path, *, policy_version: int | None = None
) -> tuple[tuple[ScoredTrajectory, bool | None], ...]:
    """Return as `read_journal` does, each with whether its answer was right; None: not graded."""
    found: dict[RolloutId, tuple[ScoredTrajectory, bool | None]] = {}
    for text in read_bytes(path).decode(errors="replace").split("\n"):
        try:
            line = json.loads(text)
            scored = scored_from_json(line)
        except (ValueError, KeyError, TypeError):
            continue
        versions = scored.trajectory.policy_version[scored.trajectory.action_mask]
        if policy_version is None or bool((versions == policy_version).all()):
            found[scored.trajectory.id] = (scored, line.get("right"))
    return tuple(found[id] for id in sorted(found))


def scored_to_json(scored: ScoredTrajectory) -> dict[str, Any]:
    """Return what one line of a journal holds."""
    logprobs = _floats(scored.teacher_logprobs[scored.trajectory.action_mask])
    return {**trajectory_to_json(scored.trajectory), "teacher_logprobs": logprobs}


def trajectory_to_json(trajectory: Trajectory) -> dict[str, Any]:
    mask = trajectory.action_mask
    return {
        "step": trajectory.id.step,
        "prompt": trajectory.id.prompt,
        "rollout": trajectory.id.rollout,
        "end_reason": trajectory.end_reason.value,
        "token_ids": trajectory.token_ids.tolist(),
        "actions": np.flatnonzero(mask).tolist(),
        "turn_index": trajectory.turn_index.tolist(),
        "sampler_logprobs": _floats(trajectory.sampler_logprobs[mask]),
        "policy_version": trajectory.policy_version[mask].tolist(),
        "num_drift_tokens": trajectory.num_drift_tokens,
        "duration_s": round(trajectory.duration_s, 6),
        "turns": _TURNS.dump_python(trajectory.turns, mode="json"),
    }


def scored_from_json(line: dict[str, Any]) -> ScoredTrajectory:
    """Build the record back; raises KeyError, TypeError or ValueError on anything else."""
    trajectory = trajectory_from_json(line)
    logprobs = _on_actions(line["teacher_logprobs"], trajectory.action_mask)
    return ScoredTrajectory(trajectory=trajectory, teacher_logprobs=logprobs)


def trajectory_from_json(line: dict[str, Any]) -> Trajectory:
    """As `scored_from_json`."""
    num_tokens = len(line["token_ids"])
    mask = np.zeros(num_tokens, dtype=np.bool_)
    mask[line["actions"]] = True
    policy_version = np.full(num_tokens, -1, dtype=np.int32)
    policy_version[mask] = line["policy_version"]
    return Trajectory(
        id=RolloutId(line["step"], line["prompt"], line["rollout"]),
        token_ids=np.asarray(line["token_ids"], dtype=np.int32),
        action_mask=mask,
        turn_index=np.asarray(line["turn_index"], dtype=np.int32),
        sampler_logprobs=_on_actions(line["sampler_logprobs"], mask),
        policy_version=policy_version,
        turns=_TURNS.validate_python(line["turns"]),
        end_reason=EndReason(line["end_reason"]),
        num_drift_tokens=line["num_drift_tokens"],
        duration_s=line["duration_s"],
    )


def _line(value: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:  # a tool may count beyond 64 bits
        return f"{json.dumps(value, ensure_ascii=False)}\n".encode()


def _floats(values: FloatArray) -> list[float]:
    # Of a float32 it writes the shortest text that reads back to it, as str does, a tenth as long.
    found: list[float] = orjson.loads(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))
    return found


def _on_actions(values: Iterable[float], mask: BoolArray) -> FloatArray:
    array = np.full(len(mask), np.nan, dtype=np.float32)
    array[mask] = np.asarray(list(values), dtype=np.float32)
    return array
