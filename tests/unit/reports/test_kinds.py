"""What kind of text a token is part of."""

import re

import pytest

from rnow.records import StopReason
from rnow.reports.kinds import KINDS, kinds_of

CALL = '<tool_call>\n{"name": "browse", "arguments": {"url": "http://a.test/"}}\n</tool_call>'


def named(*texts: str, stop: StopReason = StopReason.LENGTH) -> list[str]:
    return [KINDS[kind] for kind in kinds_of(texts, stop)]


def test_a_turn_of_all_kinds() -> None:
    found = named("<think>", "why", "</think>", "I ", "<tool_call>", '{"name": "a", ',
                  '"arguments": ', '{"url"', ': 1}', "}", "</tool_call>", "<|im_end|>",
                  stop=StopReason.STOP)  # fmt: skip
    assert found == [
        *["thinking"] * 3, "answer", *["tool call"] * 3, *["arguments"] * 2, *["tool call"] * 2,
        "stop",
    ]  # fmt: skip


def test_thinking_that_the_template_opened() -> None:
    assert named("so", " it", "</think>", "42") == ["thinking"] * 3 + ["answer"]


def test_a_call_inside_thinking_is_thinking() -> None:
    assert named("<think>", CALL, "</think>") == ["thinking"] * 3


def test_a_turn_that_was_cut() -> None:
    assert named("<tool_call>", '{"name": "a", "arguments": ', '{"ur') == [
        "tool call",
        "tool call",
        "arguments",
    ]


@pytest.mark.parametrize("text", ["", "</tool_call>", '"arguments": {"a": 1}', "<tool_call"])
def test_what_opens_nothing_is_answer(text: str) -> None:
    assert set(named(*re.findall(".", text))) <= {"answer"}


def test_parts_of_one_character_count_as_where_it_stands() -> None:
    assert named("", "", "é", "</think>", "a") == ["thinking"] * 4 + ["answer"]
