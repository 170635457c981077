from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rnow.core import (
    REWARD_REGISTRY,
    RewardArgs,
    clear_reward_registry,
    compute_total_reward,
    get_response,
    is_precondition,
    is_sandbox_reward,
    llm_judge,
    reward,
)
from rnow.errors import RnowError


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    clear_reward_registry()
    yield
    clear_reward_registry()


def three(args: RewardArgs, messages: list, more: int) -> float: ...


def untyped_args(args, messages: list) -> float: ...


def old_form(args: dict, messages: list) -> float: ...


def untyped_messages(args: RewardArgs, messages) -> float: ...


def text_messages(args: RewardArgs, messages: str) -> float: ...


def no_return(args: RewardArgs, messages: list): ...


def bool_return(args: RewardArgs, messages: list) -> bool: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            three,
            "Reward 'three' must have exactly 2 parameters: (args: RewardArgs, messages: list). "
            "Got 3 parameters.",
        ),
        (untyped_args, "Reward 'untyped_args': parameter 'args' must have type hint 'RewardArgs'."),
        (
            old_form,
            "Reward 'old_form': first parameter must be typed as 'RewardArgs', "
            "got '<class 'dict'>'.",
        ),
        (
            untyped_messages,
            "Reward 'untyped_messages': parameter 'messages' must have type hint 'list'.",
        ),
        (
            text_messages,
            "Reward 'text_messages': second parameter must be typed as 'list', "
            "got '<class 'str'>'.",
        ),
        (no_return, "Reward 'no_return' must declare return type '-> float'."),
        (bool_return, "Reward 'bool_return' must return 'float', got '<class 'bool'>'."),
    ],
)
def test_what_cannot_be_a_reward_is_refused_when_it_is_defined(
    function: Callable[..., Any], message: str
) -> None:
    with pytest.raises(TypeError) as caught:
        reward(function)
    assert str(caught.value) == f"Reward registration failed: {message}"
    assert REWARD_REGISTRY == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"parse_reasoning": True},
            "@reward has no option 'parse_reasoning': "
            "get_response(messages) gives the answer without its reasoning.",
        ),
        (
            {"weight": 2},
            "@reward has no option 'weight'; it has precondition, sandbox and timeout.",
        ),
    ],
)
def test_options_that_are_none_are_refused_kindly(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        reward(**options)
    assert str(caught.value) == message


def test_a_precondition_of_0_makes_the_total_0_and_is_else_part_of_the_sum() -> None:
    @reward(precondition=True, sandbox=True)
    def gate(args: RewardArgs, messages: list[dict[str, Any]]) -> float:
        return 1.0

    @reward
    async def accuracy(args: RewardArgs, messages: list) -> float:
        return 0.5

    assert compute_total_reward({"gate": 1.0, "accuracy": 0.5}) == 1.5
    assert compute_total_reward({"accuracy": 0.5, "gate": 0.0}) == 0.0
    assert compute_total_reward({"gate": 1.0, "accuracy": 0.0}) == 1.0
    assert compute_total_reward({}) == 0.0
    assert [is_precondition(name) for name in ("gate", "accuracy", "?")] == [True, False, False]
    assert [is_sandbox_reward(name) for name in ("gate", "accuracy", "?")] == [True, False, False]
    reward(gate)  # the same function again is no second reward


def test_two_rewards_of_one_name_are_an_error_that_names_both() -> None:
    def first() -> Callable[..., float]:
        def gate(args: RewardArgs, messages: list[dict[str, Any]]) -> float:
            return 1.0

        return gate

    def gate(args: RewardArgs, messages: list[dict[str, Any]]) -> float:
        return 0.0

    kept = reward(first())
    with pytest.raises(TypeError) as caught:
        reward(gate)
    places = [f"test_reward.py:{f.__code__.co_firstlineno}" for f in (kept, gate)]
    assert str(caught.value) == (
        f"Reward registration failed: Reward 'gate' is defined twice: at {places[0]} and at "
        f"{places[1]}. Give one of the two another name."
    )


@pytest.mark.parametrize(
    ("content", "response"),
    [
        ("COMPANY: Acme", "COMPANY: Acme"),
        (None, ""),
        (
            [
                {"type": "thinking", "thinking": "hm"},
                {"type": "text", "text": "COMPANY: "},
                {"type": "text", "text": "Acme"},
            ],
            "COMPANY: Acme",
        ),
        ([{"type": "thinking", "thinking": "hm"}], "hm"),
        ([], ""),
    ],
)
def test_the_response_is_the_text_of_the_last_assistant_message(
    content: Any, response: str
) -> None:
    messages = [
        {"role": "user", "content": "Which company?"},
        {"role": "assistant", "content": "earlier"},
        {"role": "assistant", "content": content},
        {"role": "tool", "content": "a page"},
    ]
    assert get_response(messages) == response


def test_without_an_assistant_message_the_response_is_empty() -> None:
    assert get_response([{"role": "user", "content": "Hello"}]) == ""
    assert get_response([]) == ""


def test_reward_args_are_given_by_name_and_empty_by_default() -> None:
    args = RewardArgs(metadata={"expected_answer": "Acme"})
    assert (args.metadata, args.variables, args.secrets) == ({"expected_answer": "Acme"}, {}, {})


async def test_llm_judge_says_that_it_is_not_built() -> None:
    with pytest.raises(RnowError) as caught:
        await llm_judge("Is it right?", model="gpt-5-nano")
    assert str(caught.value) == (
        "llm_judge is not built: no other model is asked; grade with a function of your own"
    )
