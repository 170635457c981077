"""`@reward`: registers a function of rewards.py, and how several rewards become one.

In distillation rewards only track progress: `rnow test` shows them, nothing here takes part in
training. Registration checks are those of the public rnow client, so that a rewards.py that works
there loads here.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast, get_origin, get_type_hints, overload

from rnow.core.names import refuse_second
from rnow.errors import RnowError

Function = TypeVar("Function", bound=Callable[..., Any])


class RewardFunction(Protocol):
    """A function that `@reward` has registered."""

    _is_precondition: bool
    _is_sandbox: bool
    _timeout: float | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


REWARD_REGISTRY: dict[str, RewardFunction] = {}


@dataclass(frozen=True, kw_only=True)
class RewardArgs:
    """What a reward function is told about the prompt, beside the conversation."""

    metadata: dict[str, Any] = field(default_factory=dict)  # of the line in train.jsonl
    variables: dict[str, Any] = field(default_factory=dict)  # likewise
    secrets: dict[str, Any] = field(default_factory=dict)  # the project's .env


@overload
def reward(fn: Function) -> Function: ...
@overload
def reward(
    fn: None = None,
    *,
    precondition: bool = False,
    sandbox: bool = False,
    timeout: float | None = None,
    **unknown: Any,
) -> Callable[[Function], Function]: ...
def reward(
    fn: Function | None = None,
    *,
    precondition: bool = False,
    sandbox: bool = False,
    timeout: float | None = None,
    **unknown: Any,
) -> Function | Callable[[Function], Function]:
    """Register a function, sync or async, as a reward: a number from 0 to 1.

        @reward
        def accuracy(args: RewardArgs, messages: list) -> float:
            return 1.0 if args.metadata["expected_answer"] in get_response(messages) else 0.0

    precondition: where this one is 0, the total is 0.
    timeout: seconds that one call may take, instead of `rollout.reward_timeout`.
    sandbox: accepted; there are no containers here.

    Raises TypeError for a function that cannot be a reward.
    """
    if unknown:
        raise TypeError(_unknown_option(next(iter(unknown))))

    def register(function: Function) -> Function:
        name = function.__name__
        try:
            refuse_second("Reward", function, REWARD_REGISTRY)
            _check_signature(function)
        except TypeError as error:
            raise TypeError(f"Reward registration failed: {error}") from error
        registered = cast(RewardFunction, function)
        registered._is_precondition = precondition
        registered._is_sandbox = sandbox
        registered._timeout = timeout
        REWARD_REGISTRY[name] = registered
        return function

    return register if fn is None else register(fn)


def compute_total_reward(reward_results: Mapping[str, float]) -> float:
    """Return the sum of all values, or 0 where a precondition's value is 0.

    A precondition's own value is part of the sum: 1.0 (gate) + 0.5 = 1.5.
    """
    if any(is_precondition(name) and value == 0.0 for name, value in reward_results.items()):
        return 0.0
    return sum(reward_results.values(), 0.0)


def clear_reward_registry() -> None:
    """Forget all rewards."""
    REWARD_REGISTRY.clear()


def is_precondition(name: str) -> bool:
    """Say whether the reward of this name is a precondition; False for an unknown name."""
    return name in REWARD_REGISTRY and REWARD_REGISTRY[name]._is_precondition


def is_sandbox_reward(name: str) -> bool:
    """Say whether the reward of this name asked for a sandbox; False for an unknown name."""
    return name in REWARD_REGISTRY and REWARD_REGISTRY[name]._is_sandbox


def _check_signature(function: Callable[..., Any]) -> None:
    name = function.__name__
    parameters = list(inspect.signature(function).parameters)
    if len(parameters) != 2:
        raise TypeError(
            f"Reward '{name}' must have exactly 2 parameters: "
            f"(args: RewardArgs, messages: list). Got {len(parameters)} parameters."
        )
    hints = get_type_hints(function)
    for parameter, wanted in zip(parameters, ("RewardArgs", "list"), strict=True):
        if parameter not in hints:
            raise TypeError(
                f"Reward '{name}': parameter '{parameter}' must have type hint '{wanted}'."
            )
    first, second = (hints[parameter] for parameter in parameters)
    if first is not RewardArgs:
        raise TypeError(
            f"Reward '{name}': first parameter must be typed as 'RewardArgs', got '{first}'."
        )
    if (get_origin(second) or second) is not list:
        raise TypeError(
            f"Reward '{name}': second parameter must be typed as 'list', got '{second}'."
        )
    if "return" not in hints:
        raise TypeError(f"Reward '{name}' must declare return type '-> float'.")
    if hints["return"] is not float:
        raise TypeError(f"Reward '{name}' must return 'float', got '{hints['return']}'.")


def _unknown_option(name: str) -> str:
    if name == "parse_reasoning":
        return (
            "@reward has no option 'parse_reasoning': "
            "get_response(messages) gives the answer without its reasoning."
        )
    return f"@reward has no option '{name}'; it has precondition, sandbox and timeout."


async def llm_judge(prompt: str, *args: Any, **kwargs: Any) -> float:
    """Refuse: judging by a hosted model is not built."""
    raise RnowError(
        "llm_judge is not built: no other model is asked; grade with a function of your own"
    )
