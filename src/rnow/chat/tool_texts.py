"""The texts of tools that a template shows, each to be exchanged for another.

A tool of an MCP server is foreign text like a page. Whatever of it is not a word of JSON schema may
hold an added token, or become one with what the template writes around it: a property `tool_call`
that is shown as `<tool_call>`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rnow.tools.base import ToolSchema

# Templates ask for these, and write other things for each.
_SCHEMA_WORDS = frozenset(
    (
        *("additionalProperties", "allOf", "anyOf", "array", "boolean", "const", "default"),
        *("description", "enum", "format", "function", "integer", "items", "maximum", "minimum"),
        *("name", "null", "nullable", "number", "object", "oneOf", "parameters", "properties"),
        *("required", "return", "string", "title", "type"),
    )
)


def texts_of(tools: Sequence[ToolSchema]) -> list[str]:
    """Return each text once, in the order of its first place."""
    return list(dict.fromkeys(text for tool in tools for text in _texts_in(_as_dict(tool))))


def with_texts(tools: Sequence[ToolSchema], others: Mapping[str, str]) -> list[ToolSchema]:
    """Return the tools with each text exchanged for another."""
    return [ToolSchema(**_exchanged(_as_dict(tool), others)) for tool in tools]


def _as_dict(tool: ToolSchema) -> dict[str, Any]:
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if value not in _SCHEMA_WORDS:
            yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts_in(key)
            yield from _texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts_in(inner)


def _exchanged(value: Any, others: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return others.get(value, value)
    if isinstance(value, Mapping):
        return {_exchanged(k, others): _exchanged(v, others) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_exchanged(inner, others) for inner in value]
    return value
