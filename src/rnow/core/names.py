"""One name, one function: of two tools or rewards of a name, only one could ever be called."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any


def refuse_second(
    kind: str, function: Callable[..., Any], known: Mapping[str, Callable[..., Any]]
) -> None:
    """Raise TypeError where another function of this name is registered, naming both places.

    The same function again is none: a module that is loaded anew, or an option that is changed.
    """
    name = function.__name__
    if name in known and place_of(known[name]) != place_of(function):
        raise TypeError(
            f"{kind} '{name}' is defined twice: at {place_of(known[name])} and at "
            f"{place_of(function)}. Give one of the two another name."
        )


def place_of(function: Callable[..., Any]) -> str:
    """Return tools.py:12."""
    code = inspect.unwrap(function).__code__
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}"
