"""Environment variables that this process sets for itself and its children must not get.

What helps a trainer's memory ends a vLLM server that shares its own with another GPU.
"""

import os
from collections.abc import Mapping

_former: dict[str, str | None] = {}  # what each was before; None: not set


def set_for_this_process(variables: Mapping[str, str]) -> None:
    """Set variables in `os.environ`, and remember what this process was started with."""
    for name, value in variables.items():
        _former.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def started_with() -> dict[str, str]:
    """Return the environment without what `set_for_this_process` did to it."""
    variables = dict(os.environ)
    for name, value in _former.items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = value
    return variables
