"""Trajectories of a step -> the numbers of its line in metrics.jsonl. Pure."""

from collections import Counter

from rnow.records import EndReason, ToolOutcome, Trajectory
from rnow.training.collect import Collected


def step_metrics(collected: Collected) -> dict[str, float]:
    """Return every count and mean that the rollouts and the teacher of one step give."""
    trajectories = [item.trajectory for item in collected.batch.scored]
    return {
        **rollout_metrics(trajectories),
        "rollout/reused": collected.num_reused,
        "rollout/dropped": collected.num_dropped_rollouts,
        "teacher/dropped": collected.num_dropped_scores,
        "teacher/scored": len(trajectories),
        "teacher/wait_s": collected.teacher_wait_s,
        "time/rollout": collected.rollout_s,
        "time/teacher": collected.teacher_wait_s,
    }


def rollout_metrics(trajectories: list[Trajectory]) -> dict[str, float]:
    """Return token counts, turns, end reasons, tool outcomes, and what the tools counted."""
    count = max(1, len(trajectories))
    num_actions = sum(trajectory.num_actions for trajectory in trajectories)
    calls = [
        call for trajectory in trajectories for turn in trajectory.turns for call in turn.tool_calls
    ]
    outcomes = Counter(call.outcome for call in calls)
    counted: Counter[str] = Counter()
    for call in calls:
        counted.update(call.counts)
    ends = Counter(trajectory.end_reason for trajectory in trajectories)
    return {
        "tokens/action": num_actions,
        "tokens/total": sum(trajectory.num_tokens for trajectory in trajectories),
        "tokens/drift": sum(trajectory.num_drift_tokens for trajectory in trajectories),
        "rollout/trajectories": len(trajectories),
        "rollout/turns": sum(len(trajectory.turns) for trajectory in trajectories) / count,
        "rollout/action_tokens": num_actions / count,
        **{f"rollout/end_{reason.value}": ends[reason] for reason in EndReason},
        "tool/calls": len(calls),
        **{f"tool/{outcome.value}": outcomes[outcome] for outcome in ToolOutcome},
        "tool/truncated": sum(call.truncated for call in calls),
        "tool/seconds": sum(call.duration_s for call in calls),
        **dict(sorted(counted.items())),
    }
