"""What the model reads of a call, answered or not.

Of an exception it is the text that the tool gave it, never a traceback: what a tool must not tell,
a path for one, it must not put there.
"""

import json
from typing import Any

_MAX_ERROR_CHARS = 2_000  # an exception's text can hold the whole page that it is about


def tool_error(sentence: str) -> str:
    """Wrap one sentence as an error.

    >>> tool_error("Tool 'x' not found in registry")
    "<tool_error>Tool 'x' not found in registry</tool_error>"
    """
    return f"<tool_error>{sentence[:_MAX_ERROR_CHARS]}</tool_error>"


def error_of(error: BaseException) -> str:
    """Return what the model is told of an exception: its text, or its type where it has none."""
    try:
        text = str(error)
    except Exception:  # the user's class may fail at that, too
        text = ""
    if not text or not isinstance(error, Exception):
        # SystemExit(1) would be a bare "1".
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return tool_error(text)


def result_of(value: Any) -> str:
    """Return a tool's value as text: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def timed_out(name: str, seconds: float) -> str:
    return tool_error(f"Tool '{name}' timed out after {seconds:g} s")


def worker_died(name: str) -> str:
    return tool_error(f"Tool '{name}' failed: its process ended before it answered")


def session_gone() -> str:
    return tool_error(
        "The session with the MCP server was lost with the process that held it. What it kept is "
        "gone; the next call begins anew."
    )
