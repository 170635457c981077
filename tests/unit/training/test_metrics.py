from dataclasses import replace

import pytest
from builders import make_trajectory as trajectory_of
from scored import make_scored

from rnow.errors import ToolDefinitionError
from rnow.records import Batch, RolloutId, Trajectory
from rnow.training.collect import Collected
from rnow.training.metrics import merge_metrics, repetition, rollout_metrics, step_metrics


def make_trajectory(**counts: int) -> Trajectory:
    """A trajectory whose only tool call counted `counts`, two underscores for a slash."""
    trajectory = make_scored(RolloutId(0, 0, 0)).trajectory
    first, last = trajectory.turns
    named = {name.replace("__", "/"): value for name, value in counts.items()}
    call = replace(first.tool_calls[0], counts=named)
    return replace(trajectory, turns=(replace(first, tool_calls=(call,)), last))


def test_the_numbers_of_two_trajectories() -> None:
    found = rollout_metrics([make_trajectory(pages=2), make_trajectory(pages=1, hits=1)])
    assert found == {
        "tokens/drift": 0,
        "rollout/trajectories": 2,
        "rollout/turns": 2.0,
        "rollout/repetition": 0.0,
        "rollout/action_tokens": 4.0,
        "rollout/end_answer": 0,
        "rollout/end_max_turns": 2,
        "rollout/end_max_tokens": 0,
        "rollout/end_request_timeout": 0,
        "rollout/end_context_full": 0,
        "rollout/end_timeout": 0,
        "rollout/end_foreign_token": 0,
        "tool/calls": 2,
        "tool/ok": 2,
        "tool/model_error": 0,
        "tool/error": 0,
        "tool/timeout": 0,
        "tool/truncated": 0,
        "tool/seconds": 0.5,
        "hits": 1,
        "pages": 3,
    }


def test_repetition_is_of_four_tokens_within_one_turn() -> None:
    # 1 2 3 4 · 2 3 4 1 · 3 4 1 2 · 4 1 2 3 · 1 2 3 4 again: one of five.
    assert repetition(trajectory_of([9, *[1, 2, 3, 4] * 2], [0] + [1] * 8)) == 0.2
    two_turns = trajectory_of(
        [9, *[1, 2, 3, 4] * 2], [0] + [1] * 8, turn_index=[-1, *[0] * 4, *[1] * 4]
    )
    assert repetition(two_turns) == 0.0
    assert repetition(trajectory_of([9, 1], [0, 1])) == 0.0


def test_what_went_by_beside_an_update_is_no_time_of_the_step() -> None:
    collected = Collected(
        batch=Batch(step=3, scored=(make_scored(RolloutId(3, 0, 0), policy_version=2),)),
        num_reused=0,
        num_dropped_rollouts=0,
        num_dropped_scores=0,
        verdicts=(None,),
        num_copied=0,
        rollout_s=10.0,
        teacher_wait_s=2.0,
    )
    for overlapped_s, rollout_s, teacher_s in ((0.0, 10.0, 2.0), (7.0, 3.0, 2.0), (11.0, 0.0, 1.0)):
        found = step_metrics(replace(collected, overlapped_s=overlapped_s))
        assert (found["time/rollout"], found["time/teacher"]) == (rollout_s, teacher_s)
        assert (found["rollout/overlapped_s"], found["teacher/wait_s"]) == (overlapped_s, 2.0)


def test_numbers_of_several_parts_make_one_line() -> None:
    line = merge_metrics({"step": 0}, {"reverse_kl": 0.5}, {}, {"time/update": 1.0})
    assert line == {"step": 0, "reverse_kl": 0.5, "time/update": 1.0}


def test_two_writers_of_one_number_are_an_error() -> None:
    with pytest.raises(ToolDefinitionError) as caught:
        merge_metrics({"step": 0, "reverse_kl": 0.5}, {"b": 1.0}, {"reverse_kl": 0.5, "step": 0})
    assert str(caught.value) == (
        "two numbers of one step are called reverse_kl, step: tools.py counts under a name that "
        "rnow has for a number of its own; count under another one"
    )


def test_a_tool_cannot_count_under_a_name_of_rnows_own() -> None:
    with pytest.raises(ToolDefinitionError, match=r"are called tool/calls: tools\.py counts"):
        rollout_metrics([make_trajectory(tool__calls=100)])
