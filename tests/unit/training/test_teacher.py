import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from builders import make_trajectory
from scripted_engine import ScriptedEngine

from rnow.engines.base import ScoreRequest, Scores
from rnow.errors import DeadlineError, EngineError, TeacherError
from rnow.records import RolloutId
from rnow.training.teacher import Teacher


def logprob(ids: Sequence[int]) -> float:
    """A number that depends on the token and on how far it stands: never the same twice."""
    return -0.1 * ids[-1] - 0.01 * len(ids)


TRAJECTORY = make_trajectory(
    [7, 8, 9, 2, 5, 6, 2],
    [0, 0, 1, 1, 0, 1, 1],
    id=RolloutId(0, 5, 1),
    turn_index=[-1, -1, 0, 0, 0, 1, 1],
)


def make_teacher(engine: ScriptedEngine) -> Teacher:
    return Teacher(engine, concurrency=2, tolerance=1e-3)


class FaultyEngine(ScriptedEngine):
    """Scores like its parent, but the answers of `faults` come first, one a call."""

    def __init__(self, *faults: Exception | np.ndarray) -> None:
        super().__init__([], logprob=logprob)
        self.faults = list(faults)

    async def score(self, request: ScoreRequest) -> Scores:
        scores = await super().score(request)
        if not self.faults:
            return scores
        fault = self.faults.pop(0)
        if isinstance(fault, Exception):
            raise fault
        return Scores(
            logprobs=fault.astype(np.float32),
            top_ids=scores.top_ids,
            top_logprobs=scores.top_logprobs,
        )


class BusyEngine(ScriptedEngine):
    """Takes a moment to score, and remembers how many requests it had at once."""

    def __init__(self) -> None:
        super().__init__([], logprob=logprob)
        self.at_once = 0
        self.most_at_once = 0

    async def score(self, request: ScoreRequest) -> Scores:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        return await super().score(request)


async def test_action_tokens_alone_get_the_teachers_log_probability() -> None:
    engine = ScriptedEngine([], logprob=logprob)
    scored = await make_teacher(engine).score(TRAJECTORY)
    nan = np.nan
    expected = np.array(
        [nan, nan, -0.1 * 9 - 0.03, -0.1 * 2 - 0.04, nan, -0.1 * 6 - 0.06, -0.1 * 2 - 0.07],
        dtype=np.float32,
    )
    np.testing.assert_allclose(scored.teacher_logprobs, expected)


async def test_a_trajectory_is_scored_in_one_request_that_asks_for_its_action_tokens() -> None:
    engine = ScriptedEngine([], logprob=logprob)
    await make_teacher(engine).score(TRAJECTORY)
    assert engine.scores == [
        ScoreRequest(token_ids=(7, 8, 9, 2, 5, 6, 2), start=2, positions=(2, 3, 5, 6))
    ]


async def test_at_most_so_many_trajectories_are_scored_at_a_time() -> None:
    engine = BusyEngine()
    teacher = make_teacher(engine)  # concurrency 2
    await asyncio.gather(*(teacher.score(TRAJECTORY) for _ in range(6)))
    assert engine.most_at_once == 2


@pytest.mark.parametrize(
    "failure",
    [
        EngineError("POST http://a:1/score answered 500: busy (3 attempts)"),
        DeadlineError("engine.score of 7 tokens has waited 600 s"),
    ],
)
async def test_a_failure_of_the_engine_is_told_in_its_words_and_not_tried_again(
    failure: EngineError | DeadlineError,
) -> None:
    engine = FaultyEngine(failure)
    with pytest.raises(TeacherError) as caught:
        await make_teacher(engine).score(TRAJECTORY)
    assert str(caught.value) == f"the teacher could not score 0.5.1: {failure}"
    assert len(engine.scores) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            np.array([-1.0, -1.0, -1.0]),
            "the teacher gave 3 log-probabilities for 0.5.1, 3 of them finite, not 4",
        ),
        (
            np.array([-1.0, np.nan, -1.0, -np.inf]),
            "the teacher gave 4 log-probabilities for 0.5.1, 2 of them finite, not 4",
        ),
    ],
)
async def test_a_missing_or_infinite_log_probability_is_never_a_number(
    answer: np.ndarray, message: str
) -> None:
    with pytest.raises(TeacherError) as caught:
        await make_teacher(FaultyEngine(answer)).score(TRAJECTORY)
    assert str(caught.value) == message


async def test_preflight_refuses_a_teacher_that_contradicts_itself() -> None:
    answers = [np.array([-1.0, -1.5]), np.array([-1.0, -1.52])]
    with pytest.raises(TeacherError) as caught:
        await make_teacher(FaultyEngine(*answers, *answers)).preflight(
            [3, 4, 5], max_context_window=8
        )
    assert str(caught.value) == (
        "the teacher answers the same 3 tokens, sent 4 times at once, differently: 0.01 nats a "
        "token apart (tolerance 0.001). Turn its prefix cache off, or use a wider dtype"
    )


async def test_preflight_refuses_a_teacher_without_weights() -> None:
    engine = ScriptedEngine([], logprob=lambda ids: -6.931)
    with pytest.raises(TeacherError) as caught:
        await make_teacher(engine).preflight([3, 4, 5, 6, 7], max_context_window=8)
    assert str(caught.value) == (
        "the teacher finds every token equally likely (-6.931 nats): its weights are not loaded"
    )


async def test_preflight_scores_the_longest_allowed_trajectory() -> None:
    engine = ScriptedEngine([], logprob=logprob)
    await make_teacher(engine).preflight([3, 4, 5], max_context_window=8)
    assert engine.scores[-2].token_ids == (3, 4, 5, 3, 4, 5, 3, 4)
    assert engine.scores[-2].start == 3  # where a trajectory's first action is
    # What an engine compares a server with that it started again.
    assert (engine.scores[-1].token_ids, engine.scores[-1].policy_version) == ((3, 4, 5), 0)
    faulty = FaultyEngine(*[np.array([-1.0, -2.0])] * 4, EngineError("out of memory"))
    with pytest.raises(TeacherError) as caught:
        await make_teacher(faulty).preflight([3, 4, 5], max_context_window=8)
    assert str(caught.value) == (
        "the teacher cannot score 8 tokens, the longest trajectory that rollout.max_context_window "
        "allows; lower it. It said: the teacher could not score preflight, longest: out of memory"
    )


async def test_a_teacher_that_changes_stops_the_run_at_the_next_step() -> None:
    weights = {"scale": 1.0}
    engine = ScriptedEngine([], logprob=lambda ids: weights["scale"] * logprob(ids))
    teacher = make_teacher(engine)
    await teacher.preflight([3, 4, 5], max_context_window=8)
    await teacher.check_health()
    weights["scale"] = 1.5
    with pytest.raises(TeacherError) as caught:
        await teacher.check_health()
    assert str(caught.value) == (
        "the teacher has changed since the run began: it now answers 0.238 nats a token away on a "
        "fixed sequence (tolerance 0.001). Was it restarted with other weights?"
    )
