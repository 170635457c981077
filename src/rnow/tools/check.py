"""Whether a call can be made at all: decided before any code of the user runs."""

from collections.abc import Mapping
from typing import Any

from rnow.core.arguments import ArgumentError, check_arguments
from rnow.tools.base import ToolCall, ToolSchema
from rnow.tools.texts import tool_error

_MAX_NAME_CHARS = 200


class CallRefused(Exception):
    """The model's mistake; `text` is what it is told."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.text = tool_error(sentence)


def checked_arguments(
    call: ToolCall, *, schemas: Mapping[str, ToolSchema], allowed: tuple[str, ...] | None
) -> dict[str, Any]:
    """Return the arguments to call with, or raise CallRefused.

    A tool that is not among `allowed` is an unknown one.
    """
    if call.error is not None:
        raise CallRefused(call.error)
    if call.name not in schemas or (allowed is not None and call.name not in allowed):
        raise CallRefused(f"Tool '{call.name[:_MAX_NAME_CHARS]}' not found in registry")
    try:
        return check_arguments(call.name, schemas[call.name].parameters, call.arguments)
    except ArgumentError as error:
        raise CallRefused(str(error)) from error
