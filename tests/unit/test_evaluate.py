import numpy as np
import pytest
from builders import tokenizer_folder

from rnow.chat import ChatTemplate
from rnow.errors import DataError, EngineError, RolloutError
from rnow.evaluate import answer_text, evaluate
from rnow.records import EndReason, Prompt, RolloutId, StopReason, Trajectory, Turn


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    folder = tmp_path_factory.mktemp("model")
    tokenizer_folder(folder, "qwen3")
    return ChatTemplate.load(folder)


def make_prompt(index: int, *, task: str = "company", expected: str | None = "ACME") -> Prompt:
    metadata = {"task_name": task}
    if expected is not None:
        metadata["expected_answer"] = expected
    return Prompt(index=index, line=index + 1, messages=(), tools=None, metadata=metadata)


def make_trajectory(id: RolloutId, chat: ChatTemplate, text: str) -> Trajectory:
    ids = [1, *chat.encode(text), chat.end_of_turn_id]
    mask = np.array([False] + [True] * (len(ids) - 1))
    return Trajectory(
        id=id,
        token_ids=np.array(ids, dtype=np.int32),
        action_mask=mask,
        turn_index=np.where(mask, 0, -1).astype(np.int32),
        sampler_logprobs=np.where(mask, -0.5, np.nan).astype(np.float32),
        policy_version=np.where(mask, 0, -1).astype(np.int32),
        turns=(
            Turn(start=1, end=len(ids), stop_reason=StopReason.STOP, tool_calls=(), duration_s=0.0),
        ),
        end_reason=EndReason.ANSWER,
        num_drift_tokens=0,
        duration_s=0.0,
    )


async def test_a_failed_rollout_is_no_answer_and_is_counted(chat: ChatTemplate) -> None:
    answers = {0: "COMPANY: ACME", 1: "COMPANY: Other", 2: "It is ACME.", 4: "DATE: 2031-02-03"}
    prompts = [make_prompt(index) for index in range(4)]
    prompts.append(make_prompt(4, task="date", expected="2031-02-03"))

    async def roll(prompt: Prompt, id: RolloutId) -> Trajectory:
        if prompt.index == 3:
            raise RolloutError("nothing was sampled")
        return make_trajectory(id, chat, answers[prompt.index])

    evaluation = await evaluate(prompts, roll, chat=chat, concurrency=2)
    figures = evaluation.as_json()
    low, high = figures.pop("interval")
    assert low < 0.5 < high
    assert figures == {
        "accuracy": 2 / 4,
        "n": 4,
        "format_ok": 3 / 4,
        "by_task": {"company": 1 / 3, "date": 1.0},
        # Always ACME, always that date: what no model is needed for.
        "constant": 1.0,
        "failed": 1,
    }
    assert [answer.prompt.index for answer in evaluation.answers] == [0, 1, 2, 4]


async def test_an_evaluation_that_mostly_failed_is_an_error(chat: ChatTemplate) -> None:
    async def roll(prompt: Prompt, id: RolloutId) -> Trajectory:
        if prompt.index:
            raise EngineError("server gone")
        return make_trajectory(id, chat, "COMPANY: ACME")

    with pytest.raises(RolloutError) as caught:
        await evaluate([make_prompt(0), make_prompt(1)], roll, chat=chat, concurrency=2)
    assert str(caught.value) == (
        "1 of 2 held-out prompts could not be rolled out; 1 times because: server gone"
    )


async def test_an_answer_ends_before_the_token_that_ended_it(chat: ChatTemplate) -> None:
    trajectory = make_trajectory(RolloutId(-1, 0, 0), chat, "COMPANY: ACME")
    assert answer_text(trajectory, chat) == "COMPANY: ACME"


async def test_a_prompt_without_an_expected_answer_cannot_be_graded(chat: ChatTemplate) -> None:
    async def roll(prompt: Prompt, id: RolloutId) -> Trajectory:
        raise AssertionError("nothing is rolled out")

    with pytest.raises(DataError) as caught:
        await evaluate([make_prompt(3, expected=None)], roll, chat=chat, concurrency=1)
    assert str(caught.value) == (
        "line 4 of the evaluation file has no metadata.expected_answer; without it an answer "
        "cannot be graded"
    )
