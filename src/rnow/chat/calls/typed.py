"""Values that a form writes as text, given the type that the tool's schema asks for.

XML-like forms write `2`, `"2"` and `"true"` alike; only the schema says which it is. A text that is
none of the type is left as it is: the check of the arguments tells the model.
"""

import json
from collections.abc import Mapping
from typing import Any

_NULLS = ("null", "None")
_TRUTHS = {"true": True, "True": True, "false": False, "False": False}


def typed(text: str, schema: Mapping[str, Any] | None) -> Any:
    """Return what `text` means where `schema` is asked for; without one it is a string."""
    types = _types(schema or {})
    word = text.strip()
    if "null" in types and word in _NULLS:
        return None
    if "string" in types or not types or schema is None or "enum" in schema:
        return text
    if "boolean" in types and word in _TRUTHS:
        return _TRUTHS[word]
    try:
        value = json.loads(word)
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, bool | str) or value is None else value


def _types(schema: Mapping[str, Any]) -> list[str]:
    if "anyOf" in schema:
        return [type_ for option in schema["anyOf"] for type_ in _types(option)]
    types = schema.get("type", [])
    return types if isinstance(types, list) else [types]
