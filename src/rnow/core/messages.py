"""Reading a conversation, for reward functions."""

from collections.abc import Mapping, Sequence
from typing import Any


def get_response(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the last assistant message, or "" where there is none.

    Tool messages after it are passed over. Of content in parts only the texts count, joined; the
    thinking where there is no text.

    >>> get_response([{"role": "assistant", "content": "COMPANY: Acme"}, {"role": "tool"}])
    'COMPANY: Acme'
    """
    for message in reversed(messages):
        if message.get("role") == "assistant":
            return _text_of(message.get("content"))
    return ""


def _text_of(content: Any) -> str:
    if not isinstance(content, list):
        return content or ""
    texts = [part.get("text", "") for part in content if part.get("type") == "text"]
    if not texts:
        texts = [part.get("text") or part.get("thinking", "") for part in content]
    return "".join(texts)
