"""A scored trajectory with everything in it, and what makes two of them the same."""

import numpy as np
from builders import make_trajectory

from rnow.records import (
    EndReason,
    RolloutId,
    ScoredTrajectory,
    StopReason,
    ToolCallRecord,
    ToolOutcome,
    Turn,
)
from rnow.runs.journal import scored_to_json


def make_scored(id: RolloutId, *, policy_version: int = 0) -> ScoredTrajectory:
    nan = np.nan
    trajectory = make_trajectory(
        [7, 8, 9, 2, 5, 6, 2],
        [0, 0, 1, 1, 0, 1, 1],
        id=id,
        turn_index=[-1, -1, 0, 0, 0, 1, 1],
        sampler_logprobs=[nan, nan, -0.1, -1 / 3, nan, -1e-7, -12.5],
        policy_version=policy_version,
        turns=(
            Turn(
                start=2,
                end=4,
                stop_reason=StopReason.STOP,
                tool_calls=(
                    ToolCallRecord(
                        name="browse",
                        arguments='{"url": "…"}',
                        outcome=ToolOutcome.OK,
                        text="a page\u2028with a line separator",
                        duration_s=0.25,
                        truncated=False,
                        counts={"browser/fetched": 1},
                    ),
                ),
                duration_s=0.5,
            ),
            Turn(start=5, end=7, stop_reason=StopReason.LENGTH, tool_calls=(), duration_s=0.125),
        ),
        end_reason=EndReason.MAX_TURNS,
        duration_s=1.5,
    )
    teacher = np.array([nan, nan, -2.0, -0.7, nan, -3e-5, -30.25], dtype=np.float32)
    return ScoredTrajectory(trajectory=trajectory, teacher_logprobs=teacher)


def assert_same(one: ScoredTrajectory, other: ScoredTrajectory) -> None:
    assert scored_to_json(one) == scored_to_json(other)
    for name in ("token_ids", "action_mask", "turn_index", "sampler_logprobs", "policy_version"):
        left, right = getattr(one.trajectory, name), getattr(other.trajectory, name)
        assert left.dtype == right.dtype
        assert left.tobytes() == right.tobytes(), name
    assert one.teacher_logprobs.tobytes() == other.teacher_logprobs.tobytes()
