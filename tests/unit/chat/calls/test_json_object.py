import pytest

from rnow.chat.calls.form import Thinking, read_calls
from rnow.chat.calls.json_object import JsonObject
from rnow.tools.base import ToolCall

HERMES = JsonObject(
    opening="<tool_call>",
    closing="</tool_call>",
    name_key="name",
    arguments_key="arguments",
    is_list=False,
)
THINK = Thinking(open="<think>", close="</think>")


def parse_tool_calls(text: str, *, stopped: bool = True) -> tuple[ToolCall, ...]:
    return read_calls(HERMES, text, thinking=THINK, schemas={}, stopped=stopped)


def call_text(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def test_a_call_is_read_as_qwen3_writes_it() -> None:
    body = '{"name": "browse", "arguments": {"url": "http://clinic.test/", "page": 2}}'
    assert parse_tool_calls(f"I look.\n{call_text(body)}") == (
        ToolCall(name="browse", arguments={"url": "http://clinic.test/", "page": 2}, raw=body),
    )


def test_several_calls_come_in_their_order() -> None:
    text = "".join(call_text(f'{{"name": "f", "arguments": {{"i": {i}}}}}') for i in range(3))
    assert [call.arguments["i"] for call in parse_tool_calls(text)] == [0, 1, 2]


def test_thinking_holds_no_calls() -> None:
    thought = call_text('{"name": "thought_of", "arguments": {}}')
    meant = call_text('{"name": "meant", "arguments": {}}')
    text = f"<think>{thought}</think>{meant}<think>{thought}"
    assert [call.name for call in parse_tool_calls(text)] == ["meant"]


def test_a_think_tag_inside_a_call_is_text() -> None:
    text = call_text('{"name": "search", "arguments": {"query": "what is <think>?"}}')
    assert parse_tool_calls(text)[0].arguments == {"query": "what is <think>?"}


def test_a_plain_answer_holds_no_calls() -> None:
    assert parse_tool_calls('The answer is {"name": "x"}.</tool_call>') == ()


def test_arguments_may_be_json_within_json() -> None:
    text = call_text(r'{"name": "f", "arguments": "{\"a\": 1}"}')
    assert parse_tool_calls(text)[0].arguments == {"a": 1}


@pytest.mark.parametrize("body", ['{"name": "today"}', '{"name": "today", "arguments": null}'])
def test_missing_arguments_are_none_at_all(body: str) -> None:
    assert parse_tool_calls(call_text(body)) == (ToolCall(name="today", arguments={}, raw=body),)


def test_the_other_usual_key_of_arguments_is_read_too() -> None:
    text = call_text('{"name": "f", "parameters": {"a": 1}}')
    assert parse_tool_calls(text)[0].arguments == {"a": 1}


def test_a_closing_tag_inside_a_string_is_text() -> None:
    text = call_text('{"name": "f", "arguments": {"a": "</tool_call><tool_call>"}}')
    assert [call.arguments for call in parse_tool_calls(text)] == [{"a": "</tool_call><tool_call>"}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("browse(url)", "Expecting value: line 1 column 1 (char 0)"),
        ("", "Expecting value: line 1 column 1 (char 0)"),
        (
            '{"name": "f", "arguments": {}',
            "Expecting ',' delimiter: line 1 column 30 (char 29)",
        ),
        ('["f"]', "expected an object, got an array"),
        ("3.5", "expected an object, got a number"),
        ("true", "expected an object, got a boolean"),
        ('{"arguments": {}}', '"name" must be the name of a tool'),
        ('{"name": 3, "arguments": {}}', '"name" must be the name of a tool'),
        ('{"name": "", "arguments": {}}', '"name" must be the name of a tool'),
        ('{"name": "f", "arguments": [1]}', '"arguments" must be an object, got an array'),
        ('{"name": "f", "arguments": "[1]"}', '"arguments" must be an object, got an array'),
        (
            '{"name": "f", "arguments": "x"}',
            "Expecting value: line 1 column 1 (char 0)",
        ),
    ],
)
def test_what_cannot_be_read_is_a_call_with_its_error(body: str, reason: str) -> None:
    assert parse_tool_calls(call_text(body)) == (
        ToolCall(name="", arguments={}, raw=body, error=f"Invalid JSON in tool call: {reason}"),
    )


def test_endless_nesting_is_an_error_of_the_model() -> None:
    (call,) = parse_tool_calls(call_text("[" * 100_000))
    assert call.error is not None
    assert call.error.startswith("Invalid JSON in tool call: ")


def test_an_unclosed_call_is_malformed_when_the_model_stopped_itself() -> None:
    body = '{"name": "f", "arguments": {}}'
    assert parse_tool_calls(f"<tool_call>{body}", stopped=True) == (
        ToolCall(
            name="",
            arguments={},
            raw=body,
            error="Invalid JSON in tool call: the closing </tool_call> is missing",
        ),
    )


def test_an_unclosed_call_is_no_call_when_the_generation_was_cut() -> None:
    whole = call_text('{"name": "whole", "arguments": {}}')
    text = f'{whole}<tool_call>{{"name": "cut", "arg'
    assert [call.name for call in parse_tool_calls(text, stopped=False)] == ["whole"]
