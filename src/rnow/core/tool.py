"""`@tool`: turns a function of tools.py into something that the model can call.

What is wrong with a tool is said when tools.py is imported, before any model is loaded. The
decorated function stays the function that it was, with what was learnt about it as attributes. How
it is run is not decided here.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast, get_type_hints, overload

from rnow.core.names import refuse_second
from rnow.core.schema import is_json_type, parameters_schema

# Running such a tool twice does no harm, so a call that its worker's death interrupted is made once
# more.
_READ_ONLY_NAMES = frozenset({"browse"})

Function = TypeVar("Function", bound=Callable[..., Any])


class ToolFunction(Protocol):
    """A function that `@tool` has registered."""

    _tool_name: str
    _schema: dict[str, Any]
    _description: str
    _is_sandbox: bool
    _timeout: float | None
    _read_only: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


TOOL_REGISTRY: dict[str, ToolFunction] = {}


@dataclass(frozen=True, kw_only=True)
class ToolArgs:
    """What the system tells a tool about the prompt that is being worked on.

    A tool that wants it has a parameter named `args`; the model does not see that parameter:

        @tool
        def sql(query: str, args: ToolArgs) -> str:
            '''Run an SQL query.'''
            database = args.metadata["db_id"]

    Secrets are not here: they are in `os.environ` (the project's .env).
    """

    metadata: dict[str, Any] = field(default_factory=dict)  # of the line in train.jsonl


@overload
def tool(fn: Function) -> Function: ...
@overload
def tool(
    fn: None = None,
    *,
    sandbox: bool = False,
    timeout: float | None = None,
    read_only: bool | None = None,
    **unknown: Any,
) -> Callable[[Function], Function]: ...
def tool(
    fn: Function | None = None,
    *,
    sandbox: bool = False,
    timeout: float | None = None,
    read_only: bool | None = None,
    **unknown: Any,
) -> Function | Callable[[Function], Function]:
    """Register a function, sync or async, as a tool. Its docstring is what the model is told of it.

        @tool
        async def browse(url: str, page: int = 1) -> str:
            '''Read a web page.

            url: where it is; page: which part of a long one'''

        @tool(timeout=120)
        def run_sql(query: str) -> list: ...

    timeout: seconds that one call may take, instead of `rollout.tool_timeout`.
    read_only: calling it twice does no harm, so that a call which was lost with its worker process
        is repeated once. Taken for granted of a tool named `browse`.
    sandbox: accepted; there are no containers here, the tool runs in the tool worker like any.

    Raises TypeError for a function that cannot be a tool; ValueError where it has no docstring.
    """
    if unknown:
        raise TypeError(_unknown_option(next(iter(unknown))))

    def register(function: Function) -> Function:
        registered = cast(ToolFunction, function)
        name = function.__name__
        registered._description = _description(function)
        try:
            refuse_second("Tool", function, TOOL_REGISTRY)
            _check_no_generator(function)
            _check_return_type(function)
            _check_timeout(name, timeout)
            registered._schema = parameters_schema(function)
            _check_tool_args(function)
        except TypeError as error:
            raise TypeError(f"Tool registration failed: {error}") from error
        registered._tool_name = name
        registered._is_sandbox = sandbox
        registered._timeout = timeout
        registered._read_only = name in _READ_ONLY_NAMES if read_only is None else read_only
        TOOL_REGISTRY[name] = registered
        return function

    return register if fn is None else register(fn)


def clear_tool_registry() -> None:
    """Forget all tools."""
    TOOL_REGISTRY.clear()


def is_sandbox_tool(name: str) -> bool:
    """Say whether the tool of this name asked for a sandbox; False for an unknown name."""
    return name in TOOL_REGISTRY and TOOL_REGISTRY[name]._is_sandbox


def _description(function: Callable[..., Any]) -> str:
    text = (function.__doc__ or "").strip()
    if not text:
        raise ValueError(
            f"Tool '{function.__name__}' must have a non-empty docstring. "
            "Add a docstring to the function."
        )
    return text


def _check_return_type(function: Callable[..., Any]) -> None:
    name = function.__name__
    hints = get_type_hints(function)
    if "return" not in hints:
        raise TypeError(
            f"Tool '{name}' must declare a return type annotation. "
            "Add -> ReturnType to the function signature."
        )
    if not is_json_type(hints["return"]):
        raise TypeError(
            f"Tool '{name}' return type '{hints['return']}' is not JSON-serializable. "
            "Use dict, list, str, int, float, bool, or None."
        )


def _check_no_generator(function: Callable[..., Any]) -> None:
    inner = inspect.unwrap(function)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(
            f"Tool '{function.__name__}' is a generator: its result is never text. "
            "Return the whole result instead of yielding parts of it."
        )


def _check_timeout(name: str, timeout: float | None) -> None:
    if timeout is not None and (isinstance(timeout, bool) or not timeout > 0):
        raise TypeError(f"Tool '{name}' has timeout={timeout!r}. Give a number of seconds above 0.")


def _check_tool_args(function: Callable[..., Any]) -> None:
    # Under another name the model would be asked for it, as a string.
    hints = get_type_hints(function)
    for parameter in inspect.signature(function).parameters:
        if hints.get(parameter) is ToolArgs and parameter != "args":
            raise TypeError(
                f"Parameter '{parameter}' of tool '{function.__name__}' is a ToolArgs. "
                "Only a parameter named 'args' is filled with it: rename it."
            )


def _unknown_option(name: str) -> str:
    if name == "description":
        return (
            "@tool has no option 'description': the function's docstring is what the model is told."
        )
    return f"@tool has no option '{name}'; it has sandbox, timeout and read_only."
