"""The form that a tokenizer itself describes: its `response_template`, read by transformers.

Last in the table: where one of the forms beside this one reads all that the template writes, it
also reads markers inside strings, which patterns of a response template end at.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rnow.chat.calls.form import Read, Schemas, malformed, marks_in
from rnow.chat.calls.json_value import arguments_of
from rnow.chat.calls.probe import Samples
from rnow.tools.base import ToolCall, ToolSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    tokenizer: Any
    opening: re.Pattern[str]
    closing: re.Pattern[str]
    marks: tuple[str, ...]

    def find(self, text: str, at: int, schemas: Schemas) -> int | None:
        found = self.opening.search(text, at)
        return None if found is None else found.start()

    def read(self, text: str, at: int, schemas: Schemas) -> Read:
        opening = self.opening.match(text, at)
        assert opening is not None
        closing = self.closing.search(text, opening.end())
        end = len(text) if closing is None else closing.end()
        raw = text[at:end].strip()
        tools = [
            ToolSchema(name=name, description="", parameters=schema).as_openai()
            for name, schema in schemas.items()
        ]
        try:
            message = self.tokenizer.parse_response(text[at:end], prefix="", tools=tools)
            calls = [_call(one, raw) for one in _flat(message["tool_calls"])]
        # What a pattern of the tokenizer's does with a model's text, nobody has promised.
        except Exception as error:
            return Read(calls=(malformed(raw, error),), end=end, is_whole=closing is not None)
        return Read(calls=tuple(calls), end=end, is_whole=closing is not None)


def find_shipped(samples: Samples) -> Shipped | None:
    """Return the form that the tokenizer ships; None if it ships none, or none for calls."""
    template = getattr(samples.tokenizer, "response_template", None)
    field = template.get("fields", {}).get("tool_calls") if isinstance(template, dict) else None
    if not isinstance(field, dict):
        return None
    opening, closing = _pattern(field, "open"), _pattern(field, "close")
    if opening is None or closing is None:
        return None
    literals = [text for side in ("open", "close") for text in _literals(field, side)]
    return Shipped(
        tokenizer=samples.tokenizer, opening=opening, closing=closing, marks=marks_in(*literals)
    )


def _literals(field: Mapping[str, Any], side: str) -> list[str]:
    literal = field.get(side, [])
    return [literal] if isinstance(literal, str) else list(literal)


def _pattern(field: Mapping[str, Any], side: str) -> re.Pattern[str] | None:
    patterns = [re.escape(text) for text in _literals(field, side)]
    patterns += [field[f"{side}_pattern"]] if f"{side}_pattern" in field else []
    return re.compile("|".join(patterns), re.DOTALL) if patterns else None


def _flat(calls: Any) -> list[Mapping[str, Any]]:
    return [one for call in calls for one in (call if isinstance(call, list) else [call])]


def _call(call: Mapping[str, Any], raw: str) -> ToolCall:
    function = call["function"]
    return ToolCall(name=function["name"], arguments=arguments_of(function["arguments"]), raw=raw)
