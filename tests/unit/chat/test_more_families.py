"""Forms of families whose templates trl does not have, in the small ones of more_families.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from builders import template_folder
from more_families import CALL, FAMILIES, NAMED, PAIRS, TEXT, chatml, each

from rnow.chat.bridge_check import check_template
from rnow.chat.template import ChatTemplate
from rnow.config.settings import RolloutSettings
from rnow.errors import TemplateError
from rnow.tools.base import ToolCall, ToolSchema

BROWSE = ToolSchema(
    name="browse",
    description="Read a page.",
    parameters={
        "type": "object",
        "properties": {"url": {"type": "string"}, "page": {"type": "integer"}},
        "required": ["url"],
    },
)
ASKED = {"role": "user", "content": "Which company runs the trial?"}


def load(folder: Path, family: str) -> ChatTemplate:
    template = FAMILIES[family][0]
    eos = "</s>" if family.startswith("Mistral") else "<|im_end|>"
    return ChatTemplate.load(template_folder(folder, template, eos=eos))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_of_the_family_is_read(tmp_path: Path, family: str) -> None:
    _, form, turn = FAMILIES[family]
    chat = load(tmp_path, family)
    assert chat.calling is not None, chat.why_no_calls
    assert type(chat.calling.form).__name__ == form
    (call,) = chat.parse_calls(chat.encode(turn), tools=[BROWSE])
    assert (call.name, call.arguments, call.error) == ("browse", CALL, None)
    limits = RolloutSettings(max_turns=3)
    assert check_template(chat, [ASKED], [BROWSE], limits=limits) == ()


def test_mistral_is_answered_with_the_id_that_the_student_wrote(tmp_path: Path) -> None:
    chat = load(tmp_path, "Mistral v3")
    (call,) = chat.parse_calls(chat.encode(FAMILIES["Mistral v3"][2]), tools=[BROWSE])
    assert call.id == "abcdefghi"
    answer = '</s>[TOOL_RESULTS] {"content": "one", "call_id": "ID"}[/TOOL_RESULTS]'
    assert chat.decode(chat.bridge(["one"], [call])) == answer.replace("ID", "abcdefghi")
    # The template takes nine characters, and no others.
    short = ToolCall(name="browse", arguments={}, raw="", id="a")
    assert chat.decode(chat.bridge(["one"], [short])) == answer.replace("ID", "call00000")


def test_a_form_that_the_tokenizer_ships_is_read_by_transformers(tmp_path: Path) -> None:
    calls = each("<call>{{ c.function.name }}" + PAIRS + ";{{ k }}~" + TEXT + "{% endfor %}</call>")
    folder = template_folder(tmp_path, chatml(calls), eos="<|im_end|>")
    assert ChatTemplate.load(folder).calling is None
    config = json.loads((folder / "tokenizer_config.json").read_text())
    field: dict[str, Any] = {
        "open_pattern": r"<call>(?P<name>\w+)",
        "close": "</call>",
        "repeats": True,
        "content": "xml-inline",
        "content_args": {
            "tag_pattern": r";(?P<key>\w+)~(?P<value>[^;<]*)",
            "value_parser": {"name": "text", "args": {"strip": False}},
        },
        "transform": {
            "type": "function",
            "function": {"name": "{name}", "arguments": "{content}"},
        },
    }
    fields = {"tool_calls": field, "content": {"close": "<|im_end|>"}}
    config["response_template"] = {"start_anchor": "assistant\n", "fields": fields}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    chat = ChatTemplate.load(folder)
    assert type(chat.need_calling().form).__name__ == "Shipped"
    turn = "I look.<call>browse;url~http://clinic.test/;page~2</call><call>browse;url~b</call>"
    read = chat.parse_calls(chat.encode(turn), tools=[BROWSE])
    assert [call.arguments for call in read] == [
        {"url": "http://clinic.test/", "page": 2},
        {"url": "b"},
    ]
    cut = chat.encode(turn.removesuffix("</call>"))
    assert len(chat.parse_calls(cut, tools=[BROWSE], stopped=False)) == 1


def test_a_template_without_answers_says_so(tmp_path: Path) -> None:
    template = chatml(each(f"<tool_call>{NAMED}</tool_call>")).replace(
        "<tool_response>{{ m.content }}</tool_response>",
        "{{ raise_exception('no tools here') }}",
    )
    chat = ChatTemplate.load(template_folder(tmp_path, template, eos="<|im_end|>"))
    with pytest.raises(TemplateError) as caught:
        check_template(chat, [ASKED], [BROWSE], limits=RolloutSettings(max_turns=2))
    assert str(caught.value) == (
        f"the chat template of {chat.name} has no form for tool results: no tools here. Tools need "
        "a template that writes calls and answers, as those of Qwen3, Llama 3.1, Mistral, GLM 4.5, "
        "gpt-oss and Gemma 4 do"
    )
