"""Trajectories of a step -> the numbers of its line in metrics.jsonl. Pure.

Each number has one owner: what trainer, monitor or evaluation count is not counted here.
"""

from collections import Counter
from collections.abc import Mapping

from rnow.errors import ToolDefinitionError
from rnow.records import EndReason, ToolOutcome, Trajectory
from rnow.training.collect import Collected
from rnow.training.gaps import gap_metrics


def merge_metrics(*groups: Mapping[str, float]) -> dict[str, float]:
    """Return all numbers of a line; raise ToolDefinitionError where a name has two writers.

    The parts of a run share none, so one of the two is a tool that counts under a part's name.
    """
    merged: dict[str, float] = {}
    for group in groups:
        twice = sorted(merged.keys() & group.keys())
        if twice:
            raise ToolDefinitionError(
                f"two numbers of one step are called {', '.join(twice)}: tools.py counts under a "
                "name that rnow has for a number of its own; count under another one"
            )
        merged |= group
    return merged


def step_metrics(collected: Collected) -> dict[str, float]:
    """Return every count and mean that the rollouts and the teacher of one step give."""
    trajectories = [item.trajectory for item in collected.batch.scored]
    waited_s = collected.rollout_s + collected.teacher_wait_s - collected.overlapped_s
    teacher_s = min(collected.teacher_wait_s, waited_s)
    graded = [right for right in collected.verdicts if right is not None]
    around = {
        "rollout/reused": collected.num_reused,
        "rollout/graded": len(graded),
        **({"rollout/right": sum(graded) / len(graded)} if graded else {}),
        "rollout/copied": collected.num_copied,
        **gap_metrics(collected.batch.scored, collected.verdicts),
        "rollout/dropped": collected.num_dropped_rollouts,
        "teacher/dropped": collected.num_dropped_scores,
        "teacher/scored": len(trajectories),
        "teacher/wait_s": collected.teacher_wait_s,
        "rollout/overlapped_s": collected.overlapped_s,
        "time/rollout": waited_s - teacher_s,
        "time/teacher": teacher_s,
    }
    return merge_metrics(rollout_metrics(trajectories), around)


def repetition(trajectory: Trajectory) -> float:
    """Return the share of 4-grams of sampled tokens that their turn already had: seq-rep-4 of
    Welleck et al. (arXiv 1908.04319)."""
    num = num_new = 0
    for turn in trajectory.turns:
        ids = trajectory.token_ids[turn.start : turn.end].tolist()
        grams = list(zip(*(ids[at:] for at in range(4)), strict=False))
        num += len(grams)
        num_new += len(set(grams))
    return (num - num_new) / num if num else 0.0


def rollout_metrics(trajectories: list[Trajectory]) -> dict[str, float]:
    """Return token counts, turns, end reasons, tool outcomes, and what the tools counted."""
    count = max(1, len(trajectories))
    calls = [call for trajectory in trajectories for call in trajectory.tool_calls]
    outcomes = Counter(call.outcome for call in calls)
    counted: Counter[str] = Counter()
    for call in calls:
        counted.update(call.counts)
    ends = Counter(trajectory.end_reason for trajectory in trajectories)
    metrics = {
        "tokens/drift": sum(trajectory.num_drift_tokens for trajectory in trajectories),
        "rollout/trajectories": len(trajectories),
        "rollout/turns": sum(len(trajectory.turns) for trajectory in trajectories) / count,
        "rollout/repetition": sum(map(repetition, trajectories)) / count,
        "rollout/action_tokens": sum(one.num_actions for one in trajectories) / count,
        **{f"rollout/end_{reason.value}": ends[reason] for reason in EndReason},
        "tool/calls": len(calls),
        **{f"tool/{outcome.value}": outcomes[outcome] for outcome in ToolOutcome},
        "tool/truncated": sum(call.truncated for call in calls),
        "tool/seconds": sum(call.duration_s for call in calls),
    }
    return merge_metrics(metrics, dict(sorted(counted.items())))
