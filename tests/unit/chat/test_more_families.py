"""Forms of families whose templates trl does not have, in small templates of their making.

Each renders what the family's own template renders around calls and answers, and no more.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from builders import template_folder

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
CALL = {"url": 'http://clinic.test/?a="b"', "page": 2}

_LOOP = (
    "<s>{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}"
)
_IM = (
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>{{ m.content }}</tool_response>"
    "<|im_end|>\n{% elif m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% else %}<|im_start|>assistant\n{{ m.content or '' }}{CALLS}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatml(calls: str) -> str:
    return _LOOP + _IM.replace("{CALLS}", "{% if m.tool_calls %}" + calls + "{% endif %}")


def each(call: str, separator: str = "") -> str:
    between = "{% if not loop.last %}" + separator + "{% endif %}" if separator else ""
    return "{% for c in m.tool_calls %}" + call + between + "{% endfor %}"


_NAMED = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
_PAIRS = "{% for k, v in c.function.arguments.items() %}"
_TEXT = "{{ v if v is string else v | tojson }}"
_PYTHON = (
    "{{ c.function.name }}(" + _PAIRS + "{{ k }}={{ v | tojson }}"
    "{% if not loop.last %}, {% endif %}{% endfor %})"
)

MISTRAL = (
    "<s>{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}"
    "{{ raise_exception('ids have nine characters') }}{% endif %}"
    '[TOOL_RESULTS] {"content": {{ m.content | tojson }}, "call_id": "{{ m.tool_call_id }}"}'
    "[/TOOL_RESULTS]{% elif m.tool_calls %}[TOOL_CALLS] ["
    + each(_NAMED[:-1] + ', "id": "{{ c.id }}"}', ", ")
    + "]</s>{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
MISTRAL_NAMED = MISTRAL.replace(
    MISTRAL[MISTRAL.index("[TOOL_CALLS]") : MISTRAL.index("</s>")],
    each("[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"),
)
SMOLLM3 = (
    "{% if xml_tools %}<|im_start|>system\nReturn a json object within <tool_call></tool_call>: "
    '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>\n'
    "{{ xml_tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SAID = f'"name": "browse", "arguments": {json.dumps(CALL)}'

# family: template, form, the turn that calls browse with CALL
FAMILIES = {
    "Mistral v3": (
        MISTRAL,
        "JsonObject",
        f'[TOOL_CALLS] [{{{_SAID}, "id": "abcdefghi"}}]',
    ),
    "Mistral v13": (
        MISTRAL_NAMED,
        "NamedJson",
        f"[TOOL_CALLS]browse[ARGS]{json.dumps(CALL)}",
    ),
    "Phi-4-mini": (
        chatml("<|tool_call|>[" + each(_NAMED, ", ") + "]<|/tool_call|>"),
        "JsonObject",
        f"<|tool_call|>[{{{_SAID}}}]<|/tool_call|>",
    ),
    "Granite": (
        chatml("<|tool_call|>[" + each(_NAMED, ", ") + "]"),
        "JsonObject",
        f"<|tool_call|>[{{{_SAID}}}]",
    ),
    "SmolLM3": (
        SMOLLM3,
        "JsonObject",
        f"<tool_call>\n{{{_SAID}}}\n</tool_call>",
    ),
    "DeepSeek V3.1": (
        chatml(
            "<\uff5ctool\u2581calls\u2581begin\uff5c>"
            + each(
                "<\uff5ctool\u2581call\u2581begin\uff5c>{{ c.function.name }}"
                "<\uff5ctool\u2581sep\uff5c>{{ c.function.arguments | tojson }}"
                "<\uff5ctool\u2581call\u2581end\uff5c>"
            )
            + "<\uff5ctool\u2581calls\u2581end\uff5c>"
        ),
        "NamedJson",
        "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>browse"
        f"<\uff5ctool\u2581sep\uff5c>{json.dumps(CALL)}<\uff5ctool\u2581call\u2581end\uff5c>"
        "<\uff5ctool\u2581calls\u2581end\uff5c>",
    ),
    "Qwen3-Coder": (
        chatml(
            each(
                "\n<tool_call>\n<function={{ c.function.name }}>\n" + _PAIRS + "<parameter={{ k }}>"
                "\n" + _TEXT + "\n</parameter>\n{% endfor %}</function>\n</tool_call>"
            )
        ),
        "Tagged",
        f"I look.\n<tool_call>\n<function=browse>\n<parameter=url>\n{CALL['url']}\n</parameter>\n"
        "<parameter=page>\n2\n</parameter>\n</function>\n</tool_call>",
    ),
    "GLM 4.7": (
        chatml(
            each(
                "<tool_call>{{ c.function.name }}" + _PAIRS + "<arg_key>{{ k }}</arg_key>"
                "<arg_value>" + _TEXT + "</arg_value>{% endfor %}</tool_call>"
            )
        ),
        "Tagged",
        f"<tool_call>browse<arg_key>url</arg_key><arg_value>{CALL['url']}</arg_value>"
        "<arg_key>page</arg_key><arg_value>2</arg_value></tool_call>",
    ),
    "MiniMax M2": (
        chatml(
            "<minimax:tool_call>\n"
            + each(
                '<invoke name="{{ c.function.name }}">\n' + _PAIRS + '<parameter name="{{ k }}">'
                "" + _TEXT + "</parameter>\n{% endfor %}</invoke>\n"
            )
            + "</minimax:tool_call>"
        ),
        "Tagged",
        f'<minimax:tool_call>\n<invoke name="browse">\n<parameter name="url">{CALL["url"]}'
        '</parameter>\n<parameter name="page">2</parameter>\n</invoke>\n</minimax:tool_call>',
    ),
    "OLMo 3": (
        chatml("<function_calls>" + each(_PYTHON, "{{ '\\n' }}") + "</function_calls>"),
        "PythonCall",
        f"<function_calls>browse(url={json.dumps(CALL['url'])}, page=2)</function_calls>",
    ),
    "FunctionGemma": (
        chatml(
            each(
                "<start_function_call>call:{{ c.function.name }}{{ '{' }}" + _PAIRS + "{{ k }}:"
                "{% if v is string %}<escape>{{ v }}<escape>{% else %}{{ v | tojson | replace("
                "'\"', '<escape>') }}{% endif %}{% if not loop.last %},{% endif %}{% endfor %}"
                "{{ '}' }}"
                "<end_function_call>"
            )
        ),
        "Braces",
        f"<start_function_call>call:browse{{url:<escape>{CALL['url']}<escape>,page:2}}"
        "<end_function_call>",
    ),
}


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
    calls = each(
        "<call>{{ c.function.name }}" + _PAIRS + ";{{ k }}~" + _TEXT + "{% endfor %}</call>"
    )
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
    template = chatml(each(f"<tool_call>{_NAMED}</tool_call>")).replace(
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
