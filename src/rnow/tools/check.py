"""Whether a call can be made at all: decided before any code of the user runs."""

from collections.abc import Mapping
from typing import Any

from rnow.core.arguments import ArgumentError, check_arguments
from rnow.tools.base import ToolCall, ToolSchema

_MAX_NAME_CHARS = 200


def checked_arguments(
    call: ToolCall, *, schemas: Mapping[str, ToolSchema], allowed: tuple[str, ...] | None
) -> dict[str, Any]:
    """Return the arguments to call with; raise ArgumentError for what is the model's mistake.

    A tool that is not among `allowed` is an unknown one.
    """
    if call.error is not None:
        raise ArgumentError(call.error)
    if call.name not in schemas or (allowed is not None and call.name not in allowed):
        raise ArgumentError(f"Tool '{call.name[:_MAX_NAME_CHARS]}' not found in registry")
    return check_arguments(call.name, schemas[call.name].parameters, call.arguments)
