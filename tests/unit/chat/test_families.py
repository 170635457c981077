"""The templates of real families: what is read of their calls, and what is refused and why."""

import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import real_template, real_templates, template_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from rnow.chat.bridge_check import check_template
from rnow.chat.calls.form import behind
from rnow.chat.template import ChatTemplate
from rnow.config.settings import RolloutSettings
from rnow.errors import TemplateError
from rnow.tools.base import ToolCall, ToolSchema

PROPERTIES = {
    "text": {"type": "string"},
    "count": {"type": "integer"},
    "share": {"type": "number"},
    "deep": {"type": "boolean"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "extra": {"type": "object"},
    "maybe": {"type": ["integer", "null"]},
}
TOOLS = [
    ToolSchema(
        name=name,
        description="Read a page.",
        parameters={"type": "object", "properties": PROPERTIES, "required": []},
    )
    for name in ("browse", "look_up2", "gr\u00f6\u00dfe")
]
ASKED = {"role": "user", "content": "Which company runs the trial?"}

# Which form is read, by template: None is a template that writes no calls.
FORMS = {
    **dict.fromkeys(["cohere", "cohere2", "gemma", "gemma3", "lfm2", "llama3"], None),
    **dict.fromkeys(["phi3", "phi3_5", "qwen2_5_vl"], None),
    **dict.fromkeys(["qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl"], "JsonObject"),
    **dict.fromkeys(["llama3_1", "llama3_2"], "BareJson"),
    **dict.fromkeys(["deepseek_r1_distill", "deepseekv3"], "NamedJson"),
    "gptoss": "Channels",
    **dict.fromkeys([f"qwen3_{kind}" for kind in ("5_nothink", "5_think", "6", "8")], "Tagged"),
    **dict.fromkeys([f"nemotron_3_{kind}" for kind in ("nano", "super", "ultra")], "Tagged"),
    **dict.fromkeys(["nemotron_3_5_lightning", "glm4moe", "muse_glimmer"], "Tagged"),
    **dict.fromkeys([f"gemma4{version}" for version in ("", "_v2", "_v3", "_v4", "_v5")], "Braces"),
    "diffusion_gemma": "Braces",
    **dict.fromkeys(["lfm2_v2", "lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"], "PythonCall"),
}
READ = sorted(name for name, form in FORMS.items() if form is not None)
# Made for images: they take a message's text from a list of parts.
NOT_TEXT = ("idefics3", "llava_next", "smolvlm")
# What the template writes behind a call changes from turn to turn.
BRIDGE_DEPENDS = ("deepseek_r1_distill", "deepseekv3")

Load = Callable[[str], ChatTemplate]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    loaded: dict[str, ChatTemplate] = {}

    def load(name: str) -> ChatTemplate:
        if name not in loaded:
            folder = tmp_path_factory.mktemp("model") / name
            loaded[name] = ChatTemplate.load(
                template_folder(folder, real_template(f"{name}.jinja"))
            )
        return loaded[name]

    return load


def of_every_use(chat: ChatTemplate) -> tuple[str, ...]:
    """What is told of every use of a template: its ends, and the day that it writes."""
    ends = chat.ends.notices(chat.name, chat.decode)
    day = (
        f"the chat template of {chat.name} writes the day into each prompt: in every run and "
        "evaluation it is 2025-01-01, so that they have the same prompts",
    )
    return ends + (day if chat.reads_the_clock([ASKED], TOOLS) else ())


def test_the_day_in_a_prompt_is_the_same_every_day(load: Load) -> None:
    assert {name for name in FORMS if load(name).reads_the_clock([ASKED], TOOLS)} == {
        *("gptoss", "llama3_2", "muse_glimmer")
    }
    assert "Current date: 2025-01-01\n" in load("gptoss").render([ASKED])
    assert "Today Date: 01 Jan 2025\n" in load("llama3_2").render([ASKED])


def test_every_template_of_trl_is_in_the_table() -> None:
    assert {*FORMS, *NOT_TEXT} == set(real_templates())


@pytest.mark.parametrize("name", sorted(FORMS))
def test_the_form_of_calls_is_found_from_the_template(load: Load, name: str) -> None:
    calling = load(name).calling
    assert (None if calling is None else type(calling.form).__name__) == FORMS[name]


@pytest.mark.parametrize("name", NOT_TEXT)
def test_a_template_that_leaves_texts_out_is_refused(load: Load, name: str) -> None:
    with pytest.raises(TemplateError, match=r"leaves out what the assistant said|cannot render"):
        load(name)


# -- one turn, or tools ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FORMS))
def test_one_turn_needs_nothing_but_an_end(load: Load, name: str) -> None:
    chat = load(name)
    for max_turns in (1, 8):
        limits = RolloutSettings(max_turns=max_turns)
        assert check_template(chat, [ASKED], limits=limits) == of_every_use(chat)
    assert chat.end_of_turn_id in chat.stop_token_ids


@pytest.mark.parametrize("name", sorted(FORMS))
def test_with_tools_a_template_is_used_or_the_reason_is_said(load: Load, name: str) -> None:
    chat = load(name)
    limits = RolloutSettings(max_turns=4)
    if name not in BRIDGE_DEPENDS and FORMS[name] is not None:
        for notice in check_template(chat, [ASKED], TOOLS, limits=limits):
            assert notice in of_every_use(chat) or "rewrites earlier thinking" in notice
        return
    with pytest.raises(TemplateError) as caught:
        check_template(chat, [ASKED], TOOLS, limits=limits)
    reason = str(caught.value).removeprefix(f"the chat template of {chat.name} ")
    if name in BRIDGE_DEPENDS:
        assert reason.startswith(
            "cannot be used: what follows an assistant's turn depends on that turn or on earlier "
            "ones. For calls in turn 2 (tool results: 1) at character "
        )
    else:
        assert reason == (
            "writes no tool calls: those of an assistant's message are left out of its rendering. "
            "Tools need a template that writes calls and answers, as those of Qwen3, Llama 3.1, "
            "Mistral, GLM 4.5, gpt-oss and Gemma 4 do"
        )


UNREADABLE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}do {{ c.function.name }}"
    "{% for k, v in c.function.arguments.items() %} with {{ k }} = {{ v }}"
    "{% endfor %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_form_that_cannot_be_read_is_an_error_that_shows_it(tmp_path: Path) -> None:
    chat = ChatTemplate.load(template_folder(tmp_path, UNREADABLE))
    shown = (
        f"the chat template of {chat.name} writes tool calls in a form that rnow does not read; "
        "a call of the tool 'rnowfirsttool' is 'do rnowfirsttool with rnowkeyone = rnowvalueone "
        "with rnowkeytwo = rnowvaluetwo<|im_end|>\\n'"
    )
    with pytest.raises(TemplateError) as caught:
        check_template(chat, [ASKED], TOOLS, limits=RolloutSettings(max_turns=2))
    assert str(caught.value).startswith(shown + ". Tools need a template that writes calls ")
    one_turn = check_template(chat, [ASKED], TOOLS, limits=RolloutSettings(max_turns=1))
    assert one_turn == (*of_every_use(chat), f"{shown}; no call is read")


# -- a rendered call is read back ---------------------------------------------------------------

_PIECES = ["a", " ", "\n", '"', "'", "\\", "\\n", "{", "}", "[", "]", ",", ":", "=", "(", "5"]
_PIECES += ["Gr\u00f6\u00dfe", "\u6f22", "\U0001f642", "true", "null", "<b>", "</b>", "&amp;"]
_PIECES += ["<think>", "</think>", "```", "http://clinic.test/?a=b", "functions.x"]


def texts(name: str, chat: ChatTemplate) -> st.SearchStrategy[str]:
    """Return texts that hold the family's own markers: all that the template writes apart."""
    assert chat.calling is not None
    form: Any = chat.calling.form
    marks = list(chat.calling.marks)
    if FORMS[name] == "Braces":
        marks = [mark for mark in marks if mark != form.quote]  # nothing escapes what ends a string
    plain = st.lists(st.sampled_from(_PIECES + marks), max_size=8).map("x".join)
    wild = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    if FORMS[name] in ("Tagged", "Braces", "PythonCall"):
        # Nothing is escaped there: what reads as the template's own markup is no text of theirs.
        wild = st.text(st.characters(exclude_categories=["P", "S", "C"]), max_size=20)
    return st.one_of(plain, wild).map(lambda text: unicodedata.normalize("NFC", text))


def arguments(name: str, chat: ChatTemplate) -> st.SearchStrategy[dict[str, Any]]:
    text = texts(name, chat)
    words = st.text("abcde fgh", max_size=8)
    keys = st.text("abcde", min_size=1, max_size=4)
    numbers = st.integers(-(10**9), 10**9) | st.floats(-1e6, 1e6, width=32)
    leaves = st.one_of(st.booleans(), numbers, words)
    nested = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
    )
    kinds = {
        "text": text,
        "count": st.integers(-(10**9), 10**9),
        "share": st.floats(-1e6, 1e6, width=32),
        "deep": st.booleans(),
        "tags": st.lists(words, max_size=3),
        "extra": st.dictionaries(keys, nested, max_size=3),
        "maybe": st.none() | st.integers(),
    }
    return st.fixed_dictionaries({}, optional=kinds)


def turn_of(chat: ChatTemplate, calls: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Return a turn as a student writes it: behind the prompt, out of what that opens."""
    assert chat.calling is not None
    prompt = chat.render([ASKED], tools=TOOLS)
    message = chat.calling.writing.message(calls)
    turn = behind(prompt, chat.render([ASKED, message], tools=TOOLS, goes_on=False))
    thinking = chat.calling.thinking
    if thinking.is_open_at_end_of(prompt):
        return f"{thinking.close}\n\n{turn.lstrip().removeprefix(thinking.close)}"
    return turn


def sampled(chat: ChatTemplate, turn: str) -> list[int]:
    """Return the ids of a turn, without the token that ends it and what comes behind that."""
    ids = chat.encode(turn)
    ends = [at for at in range(len(ids) - 3, len(ids)) if ids[at] in chat.stop_token_ids]
    return ids[: ends[-1]] if ends else ids  # one before it is an argument's text


@pytest.mark.parametrize("name", READ)
def test_a_rendered_call_is_read_back(load: Load, name: str) -> None:
    chat = load(name)
    assert chat.calling is not None
    most = 3 if chat.calling.takes_many else 1
    called = st.tuples(st.sampled_from([tool.name for tool in TOOLS]), arguments(name, chat))

    @settings(max_examples=20)
    @given(calls=st.lists(called, min_size=1, max_size=most))
    def check(calls: list[tuple[str, dict[str, Any]]]) -> None:
        read = chat.parse_calls(sampled(chat, turn_of(chat, calls)), tools=TOOLS)
        assert [(call.name, call.arguments, call.error) for call in read] == [
            (name, arguments, None) for name, arguments in calls
        ]

    check()


@pytest.mark.parametrize("name", READ)
def test_thinking_holds_no_calls(load: Load, name: str) -> None:
    chat = load(name)
    assert chat.calling is not None
    thinking = chat.calling.thinking
    call = thinking.after(turn_of(chat, [("browse", {"text": "meant"})]))
    thought = f"{thinking.open}\n{call.rpartition('<|call|>')[0] or call}\n{thinking.close}\n\n"
    if name == "gptoss":
        # Its messages say who writes, and to whom: a header within one is none.
        recipient = call.partition("<|channel|>")[0]
        thought = f"{thinking.open}I call{recipient}<|end|><|start|>assistant"
    if name == "muse_glimmer":
        thought = f"{thinking.open}{call.partition('<|eot|>')[0]}{thinking.close}<|start|>assistant"
    if thinking.is_open_at_end_of(chat.render([ASKED], tools=TOOLS)):
        thought = thought.removeprefix(thinking.open)
    read = chat.parse_calls(sampled(chat, thought + call), tools=TOOLS)
    assert [call.arguments for call in read] == [{"text": "meant"}]


@pytest.mark.parametrize("name", READ)
def test_a_marker_that_ordinary_tokens_spell_is_no_call(load: Load, name: str) -> None:
    chat = load(name)
    turn = turn_of(chat, [("browse", {"text": "quoted"})])
    spelled = [i for letter in turn for i in chat.encode(letter)]
    assert chat.added_ids.isdisjoint(spelled)
    expected = ("browse",) if FORMS[name] == "BareJson" else ()  # it has no marker
    assert tuple(call.name for call in chat.parse_calls(spelled, tools=TOOLS)) == expected


@pytest.mark.parametrize("name", READ)
def test_a_cut_call_is_none_and_an_unfinished_one_is_malformed(load: Load, name: str) -> None:
    chat = load(name)
    turn = turn_of(chat, [("browse", {"text": "rnowrnow"})])
    ids = chat.encode(turn.partition("nowrnow")[0])
    assert chat.parse_calls(ids, tools=TOOLS, stopped=False) == ()
    (call,) = chat.parse_calls(ids, tools=TOOLS, stopped=True)
    assert (call.name, call.arguments) == ("", {})
    assert call.error is not None
    assert call.error.startswith(("Invalid JSON in tool call: ", "Invalid tool call: "))


# -- answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(READ) - set(BRIDGE_DEPENDS)))
def test_no_tools_text_holds_a_marker_of_calls_or_answers(load: Load, name: str) -> None:
    chat = load(name)
    assert chat.calling is not None
    calls = [ToolCall(name="browse", arguments={}, raw="")]
    benign = chat.bridge(["x"], calls)
    marks = [mark for mark in chat.calling.marks if mark not in ("[", "]")]
    hostile = chat.bridge(["x" + "x".join(marks)], calls)
    own = [i for i in benign if i in chat.added_ids]
    assert [i for i in hostile if i in chat.added_ids] == own
    text, plain = chat.decode(hostile), chat.decode(benign)
    for mark in marks:
        if not chat.added_ids.intersection(chat.encode(mark)):
            assert text.count(mark) == plain.count(mark)
    named = [ToolCall(name="".join(marks), arguments={}, raw="")]
    assert [i for i in chat.bridge(["x"], named) if i in chat.added_ids] == own


def test_json_is_what_llama_is_told(load: Load) -> None:
    chat = load("llama3_1")
    text = 'say "<|eot_id|>"'
    assert chat.decode(chat.bridge([text])) == (
        "<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n"
        f"{json.dumps(text)}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_answers_name_the_tool_where_the_template_does(load: Load) -> None:
    calls = [ToolCall(name=name, arguments={}, raw="") for name in ("browse", "")]
    assert load("gemma4_v5").decode(load("gemma4_v5").bridge(["one", "two"], calls)) == (
        '<|tool_response>response:browse{value:<|"|>one<|"|>}<tool_response|>'
        '<|tool_response>response:unknown{value:<|"|>two<|"|>}<tool_response|>'
    )
    assert load("gptoss").decode(load("gptoss").bridge(["one"], calls[:1])) == (
        "<|call|><|start|>functions.browse to=assistant<|channel|>commentary<|message|>"
        '"one"<|end|><|start|>assistant'
    )
