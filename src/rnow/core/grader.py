"""`@grader`: registers a function of rewards.py that says whether an answer is the expected one.

    answer ─▶ label, extract, or the whole text ─▶ value ─▶ same(expected, value) ─▶ right or wrong
                                                └─ none: wrong, and not in the asked form

A grader compares values, not texts of answers, so that expected values can be compared with each
other: that is how the best constant answer is found.
"""

import inspect
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast, get_type_hints, overload

Function = TypeVar("Function", bound=Callable[..., Any])


class GraderFunction(Protocol):
    """A function that `@grader` has registered."""

    _extract: Callable[[str, Mapping[str, Any]], Any]  # (answer, metadata) -> value, or None
    _takes_metadata: bool  # behind (expected, answered)
    _timeout: float | None

    def __call__(self, *args: Any) -> Any: ...


GRADER_REGISTRY: dict[str, GraderFunction] = {}
_POSITIONAL = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


@overload
def grader(fn: Function) -> Function: ...
@overload
def grader(
    fn: None = None,
    *,
    label: str | None = None,
    extract: Callable[..., str | None] | None = None,
    timeout: float | None = None,
) -> Callable[[Function], Function]: ...
def grader(
    fn: Function | None = None,
    *,
    label: str | None = None,
    extract: Callable[..., str | None] | None = None,
    timeout: float | None = None,
) -> Function | Callable[[Function], Function]:
    """Register a function, sync or async, that says whether two values are the same answer.

        @grader(label="CITY")
        def same_city(expected: str, answered: str) -> bool:
            return expected.casefold() == answered.casefold()

    It, and `extract`, may have one more parameter: the metadata of the prompt's entry.

    label: what stands behind the last such label of an answer, to the end of its line, is its
        value. Without label and extract the whole answer is.
    extract: takes the answer without its thinking, returns its value; None: it has none.
    timeout: seconds that grading one answer may take, instead of `rollout.reward_timeout`.

    Raises TypeError for a function that cannot be a grader.
    """

    def register(function: Function) -> Function:
        name = function.__name__
        if label is not None and extract is not None:
            raise TypeError(f"Grader '{name}' has a label and an extract; give one of them.")
        if timeout is not None and (isinstance(timeout, bool) or not timeout > 0):
            raise TypeError(
                f"Grader '{name}' has timeout={timeout!r}. Give a number of seconds above 0."
            )
        _check_signature(function)
        if extract is not None:
            _check_count(extract, f"Grader '{name}': its extract", "(answer)", 1)
        known = GRADER_REGISTRY.get(name)
        if known is not None and known is not function:
            raise TypeError(f"Grader '{name}' is there already; give the function another name.")
        registered = cast(GraderFunction, function)
        registered._extract = _reads(label) if extract is None else _taking_metadata(extract)
        registered._takes_metadata = _takes_metadata(function, after=2)
        registered._timeout = timeout
        GRADER_REGISTRY[name] = registered
        return function

    return register if fn is None else register(fn)


def labelled_line(text: str, *labels: str) -> str | None:
    """Return what follows the last `LABEL:` of any of the labels, to the end of its line.

    Case and markdown's marks play no part; None where no such line says anything.

    >>> labelled_line("I looked.\\n**City:** Bern.", "CITY")
    'Bern'
    """
    label = "|".join(re.escape(name).replace(r"\ ", r"[ _]") for name in labels)
    marks = " \t*_`\"'"
    found = re.findall(rf"(?i)(?<!\w)(?:{label})[*_` ]*:[*_` ]*(.*)", text)
    values = [value.lstrip(marks).rstrip(marks + ".") for value in found]
    return next((value for value in reversed(values) if value), None)


@lru_cache(maxsize=10_000)
def plain_text(text: str) -> str:
    """Return `text` in lower case, without accents, with single spaces."""
    return " ".join(without_accents(text).split())


def without_accents(text: str) -> str:
    """Return `text` in lower case without accents."""
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()


def is_not_available(value: str) -> bool:
    """Say whether an expected value means that there is none: NA, N/A, none, not listed."""
    return plain_text(value).replace("_", " ").strip(" .") in _NOT_AVAILABLE


_NOT_AVAILABLE = (
    "na",
    "n/a",
    "none",
    "null",
    "not available",
    "not applicable",
    "not listed",
)


def _reads(label: str | None) -> Callable[[str, Mapping[str, Any]], str | None]:
    def read(answer: str, metadata: Mapping[str, Any]) -> str | None:
        return answer if label is None else labelled_line(answer, label)

    return read


def _taking_metadata(extract: Callable[..., Any]) -> Callable[[str, Mapping[str, Any]], Any]:
    if _takes_metadata(extract, after=1):
        return extract
    return lambda answer, metadata: extract(answer)


def _takes_metadata(function: Callable[..., Any], *, after: int) -> bool:
    return len(inspect.signature(function).parameters) > after


def _check_signature(function: Callable[..., Any]) -> None:
    what = f"Grader '{function.__name__}'"
    _check_count(function, what, "(expected: str, answered: str)", 2)
    hints = get_type_hints(function)
    for name in list(inspect.signature(function).parameters)[:2]:
        if hints.get(name, str) is not str:
            raise TypeError(f"{what}: parameter '{name}' is a text; its type hint must be 'str'.")
    if hints.get("return", bool) not in (bool, bool | None):
        raise TypeError(f"{what} must return 'bool', got '{hints['return']}'.")


def _check_count(function: Callable[..., Any], what: str, wanted: str, num: int) -> None:
    parameters = inspect.signature(function).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if len(parameters) not in (num, num + 1) or not kinds <= _POSITIONAL:
        raise TypeError(
            f"{what} must take {wanted}, and one more where it wants the entry's metadata; "
            f"it takes ({', '.join(parameters)})."
        )


@grader
def same_text(expected: str, answered: str) -> bool:
    """Say whether two texts differ in case, accents and spaces at most: the grader of who has none.

    >>> same_text("Zürich", "zurich ")
    True
    """
    return plain_text(expected) == plain_text(answered)


def clear_grader_registry() -> None:
    """Forget all graders but `same_text`."""
    for name in [*GRADER_REGISTRY]:
        if name != same_text.__name__:
            del GRADER_REGISTRY[name]
