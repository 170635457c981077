"""What kind of text a token is part of, in the words of several families."""

import functools
import re
import tempfile
from pathlib import Path

import pytest
from builders import tokenizer_folder

from rnow.chat.calling import Calling
from rnow.chat.template import ChatTemplate
from rnow.records import StopReason, ToolCallRecord, ToolOutcome, Turn
from rnow.reports.kinds import KINDS, kinds_of

CALL = '<tool_call>\n{"name": "browse", "arguments": {"url": "http://a.test/"}}\n</tool_call>'


@functools.cache
def calling(family: str) -> Calling:
    with tempfile.TemporaryDirectory() as folder:
        return ChatTemplate.load(tokenizer_folder(Path(folder), family)).need_calling()


def named(
    *texts: str, stop: StopReason = StopReason.LENGTH, family: str | None = "qwen3"
) -> list[str]:
    call = ToolCallRecord(
        name="browse",
        arguments="{}",
        outcome=ToolOutcome.OK,
        text="",
        duration_s=0.0,
        truncated=False,
    )
    turn = Turn(start=0, end=len(texts), stop_reason=stop, tool_calls=(call,), duration_s=0.0)
    found = kinds_of(texts, turn, None if family is None else calling(family))
    return [KINDS[kind] for kind in found]


def test_a_turn_of_all_kinds() -> None:
    found = named("<think>", "why", "</think>", "I ", "<tool_call>", '{"name": "', "browse",
                  '", "arguments": ', '{"url"', ': "a"}', "}", "\n", "</tool_call>", "<|im_end|>",
                  stop=StopReason.STOP)  # fmt: skip
    assert found == [
        *["thinking"] * 3, "answer", *["tool call"] * 3, *["arguments"] * 4, *["tool call"] * 2,
        "stop",
    ]  # fmt: skip


def test_thinking_that_the_template_opened() -> None:
    assert named("so", " it", "</think>", "42") == ["thinking"] * 3 + ["answer"]


def test_a_call_inside_thinking_is_thinking() -> None:
    assert named("<think>", CALL, "</think>") == ["thinking"] * 3
    assert named("<think>", CALL) == ["thinking"] * 2


def test_two_calls_and_an_answer_between_them() -> None:
    assert named(CALL, "and", CALL) == ["tool call", "answer", "tool call"]


def test_a_turn_that_was_cut() -> None:
    assert named("<tool_call>", '{"name": "browse', '", "arguments": ', '{"ur') == [
        "tool call",
        "tool call",
        "arguments",
        "arguments",
    ]


def test_another_family_writes_its_own_calls() -> None:
    texts = ('{"name": "', "browse", '", "parameters": {"url": "a"}}')
    assert set(named(*texts)) == {"answer"}
    assert named(*texts, family="llama3.1") == ["tool call", "tool call", "arguments"]


def test_without_a_template_thinking_is_known_alone() -> None:
    assert named("<think>", "a", "</think>", CALL, family=None) == ["thinking"] * 3 + ["answer"]


@pytest.mark.parametrize("text", ["", "</tool_call>", '"arguments": {"a": 1}', "<tool_call"])
def test_what_opens_nothing_is_answer(text: str) -> None:
    assert set(named(*re.findall(".", text))) <= {"answer"}


def test_parts_of_one_character_count_as_where_it_stands() -> None:
    assert named("", "", "é", "</think>", "a") == ["thinking"] * 4 + ["answer"]
