from dataclasses import replace

import pytest
from builders import graded_prompt, make_trajectory, medbrowse_grading, tokenizer_folder
from rich.console import Console

from rnow.chat.conversation import turn_text
from rnow.chat.template import ChatTemplate
from rnow.commands.eval import show_evaluation
from rnow.errors import EngineError, RolloutError
from rnow.evaluation.attempts import evaluate
from rnow.evaluation.pass_at_k import PassAtK
from rnow.records import (
    EndReason,
    Prompt,
    RolloutId,
    ToolCallRecord,
    ToolOutcome,
    Trajectory,
)
from rnow.rollout.attempt import Attempt


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    folder = tmp_path_factory.mktemp("model")
    tokenizer_folder(folder, "qwen3")
    return ChatTemplate.load(folder)


def make_prompt(index: int, *, task: str = "company", expected: str | None = "ACME") -> Prompt:
    return graded_prompt(index, task=task, expected=expected)


def answered(id: RolloutId, chat: ChatTemplate, text: str) -> Trajectory:
    ids = [1, *chat.encode(text), chat.end_of_turn_id]
    return make_trajectory(ids, [False] + [True] * (len(ids) - 1), id=id)


async def test_a_failed_rollout_is_no_answer_and_is_counted(chat: ChatTemplate) -> None:
    answers = {0: "COMPANY: ACME", 1: "COMPANY: Other", 2: "It is ACME.", 4: "DATE: 2031-02-03"}
    prompts = [make_prompt(index) for index in range(4)]
    prompts.append(make_prompt(4, task="date", expected="2031-02-03"))

    async def roll(attempt: Attempt) -> Trajectory:
        if attempt.prompt.index == 3:
            raise RolloutError("nothing was sampled")
        return answered(attempt.id, chat, answers[attempt.prompt.index])

    evaluation = await evaluate(
        prompts, roll, grading=medbrowse_grading(), policy_version=0, chat=chat, concurrency=2
    )
    figures = evaluation.as_json()
    low, high = figures["interval"]
    assert low < 0.5 < high
    # Always ACME, always that date: what no model is needed for.
    company = {"accuracy": 1 / 3, "interval": [0.0615, 0.7923], "n": 3, "constant": 1.0}
    date = {"accuracy": 1.0, "interval": [0.2065, 1.0], "n": 1, "constant": 1.0}
    whole = {"accuracy": 2 / 4, "interval": [0.15, 0.85], "n": 4, "constant": 1.0}
    assert figures == {
        **whole,
        "temperature": 0.0,
        "format_ok": 3 / 4,
        "reward": None,
        "by_task": {"company": 1 / 3, "date": 1.0},
        "tasks": {"company": company, "date": date},
        "not_na": whole,
        "na": None,
        "pass_at": {"1": {"value": 2 / 4, "interval": [0.15, 0.85], "n": 4, "temperature": 0.0}},
        "failed": 1,
        "ungraded": 0,
        "failures": {"nothing was sampled": 1},
        "tool_failures": 0,
        "timed_out": 0,
        "notes": [],
    }
    assert [answer.prompt.index for answer in evaluation.answers] == [0, 1, 2, 4]


async def test_an_evaluation_that_mostly_failed_is_an_error(chat: ChatTemplate) -> None:
    async def roll(attempt: Attempt) -> Trajectory:
        if attempt.prompt.index:
            raise EngineError("server gone")
        return answered(attempt.id, chat, "COMPANY: ACME")

    with pytest.raises(RolloutError) as caught:
        await evaluate(
            [make_prompt(0), make_prompt(1)],
            roll,
            grading=medbrowse_grading(),
            policy_version=0,
            chat=chat,
            concurrency=2,
        )
    assert str(caught.value) == (
        "1 of 2 rollouts of held-out prompts have failed, and the others would say little; "
        "1 times because: server gone"
    )


async def test_an_answer_ends_before_the_token_that_ended_it(chat: ChatTemplate) -> None:
    trajectory = answered(RolloutId(-1, 0, 0), chat, "COMPANY: ACME")
    assert turn_text(trajectory, trajectory.turns[-1], chat) == "COMPANY: ACME"


async def test_metrics_share_the_attempts_at_one_temperature(chat: ChatTemplate) -> None:
    asked: list[tuple[RolloutId, float]] = []

    async def roll(attempt: Attempt) -> Trajectory:
        asked.append((attempt.id, attempt.temperature))
        # Greedily wrong, and right in one attempt of the four: the last one.
        return answered(
            attempt.id, chat, "COMPANY: ACME" if attempt.id.rollout == 4 else "COMPANY: Other"
        )

    passes = (PassAtK(1, 0.0), PassAtK(2, 0.6), PassAtK(4, 0.6))
    evaluation = await evaluate(
        [make_prompt(7)],
        roll,
        grading=medbrowse_grading(),
        policy_version=0,
        chat=chat,
        concurrency=8,
        passes=passes,
    )
    assert sorted(asked) == [
        (RolloutId(-1, 7, attempt), 0.0 if attempt == 0 else 0.6) for attempt in range(5)
    ]
    assert evaluation.accuracy == 0.0
    values = {metric.k: evaluation.pass_figures(metric) for metric in passes}
    # One of four is right: of the six pairs three hold it.
    assert {k: figures and figures.value for k, figures in values.items()} == {
        1: 0.0,
        2: 0.5,
        4: 1.0,
    }


async def test_too_few_attempts_say_nothing_about_pass_at_k(chat: ChatTemplate) -> None:
    async def roll(attempt: Attempt) -> Trajectory:
        if (attempt.prompt.index, attempt.id.rollout) == (1, 4):
            raise EngineError("server gone")
        return answered(
            attempt.id, chat, "COMPANY: ACME" if attempt.prompt.index else "COMPANY: Other"
        )

    passes = (PassAtK(1, 0.0), PassAtK(4, 0.6))
    prompts = [make_prompt(0), make_prompt(1)]
    evaluation = await evaluate(
        prompts,
        roll,
        grading=medbrowse_grading(),
        policy_version=0,
        chat=chat,
        concurrency=8,
        passes=passes,
    )
    pass4 = evaluation.pass_figures(passes[1])
    assert pass4 is not None
    # Prompt 1 has three attempts left, all right; it is neither 0 nor 1.
    assert (pass4.value, pass4.num) == (0.0, 1)
    assert (evaluation.accuracy, evaluation.failures) == (0.5, {"server gone": 1})


async def test_prompts_without_an_answer_are_counted_apart(chat: ChatTemplate) -> None:
    async def roll(attempt: Attempt) -> Trajectory:
        return answered(attempt.id, chat, "DATE: NA")

    expected = ["NA", "Not_Listed", "NA", "2031-02-03"]
    prompts = [
        make_prompt(index, task="date", expected=text) for index, text in enumerate(expected)
    ]
    figures = (
        await evaluate(
            prompts, roll, grading=medbrowse_grading(), policy_version=0, chat=chat, concurrency=2
        )
    ).as_json()
    assert (figures["accuracy"], figures["constant"]) == (0.75, 0.75)
    assert (figures["na"]["accuracy"], figures["na"]["n"]) == (1.0, 3)
    assert figures["not_na"] == {
        "accuracy": 0.0,
        "interval": [0.0, 0.7935],
        "n": 1,
        "constant": 1.0,
    }


async def test_what_tools_and_deadlines_spoiled_is_told_beside_the_figures(
    chat: ChatTemplate,
) -> None:
    async def roll(attempt: Attempt) -> Trajectory:
        trajectory = answered(attempt.id, chat, "COMPANY: ACME")
        calls = tuple(
            ToolCallRecord(
                name="browse",
                arguments="{}",
                outcome=outcome,
                text="",
                duration_s=0.1,
                truncated=False,
            )
            for outcome in ToolOutcome
        )
        turn = replace(trajectory.turns[0], tool_calls=calls)
        return replace(trajectory, turns=(turn,), end_reason=EndReason.TIMEOUT)

    evaluation = await evaluate(
        [make_prompt(0)],
        roll,
        grading=medbrowse_grading(),
        policy_version=0,
        chat=chat,
        concurrency=1,
    )
    assert (evaluation.num_tool_failures, evaluation.num_timed_out) == (2, 1)
    console = Console(record=True, width=100)
    show_evaluation(evaluation, title="base", console=console)
    assert console.export_text().splitlines()[-2:] == [
        "Wilson intervals; 100.0 % in the asked form; 0 rollouts failed and are not counted",
        "counted as they ended: 2 tool calls that failed or ran out of time, 1 rollouts cut by "
        "rollout.rollout_timeout",
    ]
