import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnow.engines.base import Completion
from rnow.errors import EngineError
from rnow.records import EndReason, RolloutId, StopReason, ToolCallRecord, ToolOutcome, Trajectory
from rnow.rollout.ledger import Ledger

EOT = 2  # the id that every bridge here begins with
OTHER_STOP = 3


def completion(
    prompt_ids: Sequence[int],
    token_ids: Sequence[int],
    *,
    logprobs: Sequence[float] | None = None,
    policy_version: int = 7,
) -> Completion:
    stopped = bool(token_ids) and token_ids[-1] in (EOT, OTHER_STOP)
    values = [-0.5] * len(token_ids) if logprobs is None else logprobs
    return Completion(
        prompt_ids=np.array(prompt_ids, dtype=np.int32),
        token_ids=np.array(token_ids, dtype=np.int32),
        logprobs=np.array(values, dtype=np.float32),
        stop_reason=StopReason.STOP if stopped else StopReason.LENGTH,
        policy_version=policy_version,
    )


def add(ledger: Ledger, token_ids: Sequence[int]) -> None:
    ledger.add_completion(completion(ledger.token_ids, token_ids), duration_s=0.1)


def close(ledger: Ledger) -> Trajectory:
    return ledger.close(id=RolloutId(0, 0, 0), end_reason=EndReason.ANSWER, duration_s=1.0)


def tool_record(text: str) -> ToolCallRecord:
    return ToolCallRecord(
        name="f",
        arguments="{}",
        outcome=ToolOutcome.OK,
        text=text,
        duration_s=0.1,
        truncated=False,
    )


def test_every_token_is_written_down_with_what_is_known_of_it() -> None:
    ledger = Ledger([10, 11])
    ledger.add_completion(
        completion([10, 11], [20, EOT], logprobs=[-0.25, -0.5], policy_version=3), duration_s=0.1
    )
    ledger.add_bridge([EOT, 30, 31])
    sent = [10, 11, 20, EOT, 30, 31]
    ledger.add_completion(
        completion(sent, [21], logprobs=[-0.75], policy_version=4), duration_s=0.2
    )
    trajectory = close(ledger)

    nan = math.nan
    assert trajectory.token_ids.tolist() == [10, 11, 20, EOT, 30, 31, 21]
    assert trajectory.action_mask.tolist() == [False, False, True, True, False, False, True]
    assert trajectory.turn_index.tolist() == [-1, -1, 0, 0, 0, 0, 1]
    np.testing.assert_array_equal(
        trajectory.sampler_logprobs, np.array([nan, nan, -0.25, -0.5, nan, nan, -0.75], np.float32)
    )
    assert trajectory.policy_version.tolist() == [-1, -1, 3, 3, -1, -1, 4]
    assert [(turn.start, turn.end, turn.stop_reason) for turn in trajectory.turns] == [
        (2, 4, StopReason.STOP),
        (6, 7, StopReason.LENGTH),
    ]
    assert [turn.duration_s for turn in trajectory.turns] == [0.1, 0.2]
    assert trajectory.num_drift_tokens == 0
    assert [a.dtype for a in (trajectory.token_ids, trajectory.sampler_logprobs)] == [
        np.int32,
        np.float32,
    ]


def test_an_end_of_turn_that_was_not_sampled_is_no_action() -> None:
    ledger = Ledger([10])
    add(ledger, [20, 21])  # cut at its length
    ledger.add_bridge([EOT, 30])
    add(ledger, [22, EOT])
    trajectory = close(ledger)
    assert trajectory.token_ids.tolist() == [10, 20, 21, EOT, 30, 22, EOT]
    assert trajectory.action_mask.tolist() == [False, True, True, False, False, True, True]


def test_after_another_stop_token_the_end_of_turn_is_appended_as_no_action() -> None:
    ledger = Ledger([10])
    add(ledger, [20, OTHER_STOP])
    ledger.add_bridge([EOT, 30])
    add(ledger, [EOT])
    trajectory = close(ledger)
    assert trajectory.token_ids.tolist() == [10, 20, OTHER_STOP, EOT, 30, EOT]
    assert trajectory.action_mask.tolist() == [False, True, True, False, False, True]


def test_a_trajectory_ends_with_its_last_sampled_token() -> None:
    ledger = Ledger([10])
    add(ledger, [20, EOT])
    ledger.add_tool_calls([tool_record("said last")])
    ledger.add_bridge([EOT, 30, 31])
    trajectory = close(ledger)
    assert trajectory.token_ids.tolist() == [10, 20, EOT]
    assert [call.text for call in trajectory.turns[0].tool_calls] == ["said last"]


def test_ids_that_the_engine_did_not_receive_as_sent_are_counted() -> None:
    ledger = Ledger([10, 11, 12])
    ledger.add_completion(completion([10, 99, 12], [20, EOT]), duration_s=0.1)
    ledger.add_bridge([EOT, 30])
    ledger.add_completion(completion([10, 11, 12, 20], [21, EOT]), duration_s=0.1)
    assert close(ledger).num_drift_tokens == 1 + 2


@pytest.mark.parametrize(
    ("token_ids", "logprobs", "message"),
    [
        ([], [], "the engine sampled no token; even an empty answer has a stop token"),
        ([20, EOT], [-0.5], "the engine gave 1 log-probabilities for 2 sampled tokens"),
        (
            [20, EOT],
            [-0.5, math.nan],
            "the engine's log-probability of sampled token 1 (id 2) is nan; it must be finite",
        ),
        (
            [20, EOT],
            [-math.inf, -0.5],
            "the engine's log-probability of sampled token 0 (id 20) is -inf; it must be finite",
        ),
    ],
)
def test_a_completion_without_a_number_for_each_token_is_an_error(
    token_ids: list[int], logprobs: list[float], message: str
) -> None:
    with pytest.raises(EngineError) as caught:
        Ledger([10]).add_completion(completion([10], token_ids, logprobs=logprobs), duration_s=0.1)
    assert str(caught.value) == message


token = st.integers(min_value=4, max_value=60)
generation = st.tuples(st.lists(token, max_size=6), st.sampled_from([EOT, OTHER_STOP, 50])).map(
    lambda parts: [*parts[0], parts[1]]
)
bridge = st.lists(token, max_size=6).map(lambda ids: [EOT, *ids])


@given(
    prompt=st.lists(token, min_size=1, max_size=6),
    turns=st.lists(st.tuples(generation, bridge), min_size=1, max_size=6),
)
def test_each_turn_extends_the_one_before_and_actions_are_what_was_sampled(
    prompt: list[int], turns: list[tuple[list[int], list[int]]]
) -> None:
    ledger = Ledger(prompt)
    sent: list[tuple[int, ...]] = []
    for ids, following in turns:
        sent.append(ledger.token_ids)
        add(ledger, ids)
        ledger.add_bridge(following)
    trajectory = close(ledger)

    everything = tuple(trajectory.token_ids.tolist())
    for earlier, later in zip(sent, [*sent[1:], everything], strict=True):
        assert later[: len(earlier)] == earlier
    sampled = [token for ids, _ in turns for token in ids]
    assert trajectory.token_ids[trajectory.action_mask].tolist() == sampled
    for turn, (ids, _) in zip(trajectory.turns, turns, strict=True):
        assert trajectory.token_ids[turn.start : turn.end].tolist() == ids
        assert trajectory.action_mask[turn.start : turn.end].all()
    expected = list(prompt)
    for ids, following in turns:
        expected += ids
        expected += following[1:] if ids[-1] == EOT else following
    last_bridge = turns[-1][1][1:] if turns[-1][0][-1] == EOT else turns[-1][1]
    assert [*everything, *last_bridge] == expected
