import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from builders import FAMILIES, real_template, tokenizer_folder
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from rnow.chat.bridge_check import check_template
from rnow.chat.template import ChatTemplate
from rnow.config.settings import RolloutSettings
from rnow.errors import ModelError, TemplateError
from rnow.tools.base import ToolSchema

BROWSE = ToolSchema(
    name="browse",
    description="Read a page.",
    parameters={
        "type": "object",
        "properties": {"url": {"type": "string"}},
        "required": ["url"],
    },
)
PROMPT = (
    {"role": "system", "content": "You look things up."},
    {"role": "user", "content": "Which company runs the trial?"},
)
QWEN3 = real_template("qwen3.jinja")

Load = Callable[..., ChatTemplate]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    def load(
        family: str, *, template: str | None = None, reasoning_mode: str | None = None
    ) -> ChatTemplate:
        folder = tmp_path_factory.mktemp("model") / "student"
        tokenizer_folder(folder, family, template=template)
        return ChatTemplate.load(folder, reasoning_mode=reasoning_mode)

    return load


@pytest.fixture(scope="module")
def qwen3(load: Load) -> ChatTemplate:
    return load("qwen3")


def call(url: str) -> str:
    return f'<tool_call>\n{{"name": "browse", "arguments": {{"url": "{url}"}}}}\n</tool_call>'


def check_with_tools(chat: ChatTemplate) -> tuple[str, ...]:
    return check_template(chat, PROMPT, [BROWSE], limits=RolloutSettings(max_turns=4))


def put_together(
    chat: ChatTemplate, turns: Sequence[tuple[str, Sequence[str]]]
) -> tuple[list[int], list[int]]:
    """Return a conversation as the ledger has it and as the template renders it."""
    ids = chat.render_prompt(PROMPT, [BROWSE])
    messages = [*PROMPT]
    for content, results in turns:
        ids += chat.encode(content) + chat.bridge(results)
        messages.append({"role": "assistant", "content": content})
        messages += [{"role": "tool", "content": text} for text in results]
    return ids, chat.render_prompt(messages, [BROWSE])


# -- prompt -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_the_templates_own_rendering(load: Load, family: str) -> None:
    from transformers import AutoTokenizer

    chat = load(family)
    tokenizer = AutoTokenizer.from_pretrained(chat.name)
    own = tokenizer.apply_chat_template(
        list(PROMPT), tools=[BROWSE.as_openai()], add_generation_prompt=True, return_dict=False
    )
    assert chat.render_prompt(PROMPT, [BROWSE]) == own
    assert chat.render_prompt(PROMPT) != own


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        (None, "<|im_start|>assistant\n"),
        ("high", "<|im_start|>assistant\n"),
        ("none", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("disabled", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_reasoning_mode_reaches_prompt_and_bridge(
    load: Load, mode: str | None, ending: str
) -> None:
    chat = load("qwen3", reasoning_mode=mode)
    assert chat.decode(chat.render_prompt(PROMPT)).endswith(f"trial?<|im_end|>\n{ending}")
    assert chat.decode(chat.bridge(())) == f"<|im_end|>\n{ending}"


def test_arguments_that_are_json_text_are_given_to_the_template_as_an_object(load: Load) -> None:
    function = {"name": "browse", "arguments": '{"url": "http://clinic.test/"}'}
    asked = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    text = load("qwen2.5").render([*PROMPT, asked, {"role": "tool", "content": "page"}])
    assert '{"name": "browse", "arguments": {"url": "http://clinic.test/"}}' in text


def test_messages_that_a_template_refuses_are_named(load: Load) -> None:
    template = "{{- raise_exception('roles must alternate') if messages|length > 2 }}x<|im_end|>"
    chat = load("qwen3", template=template + "{{ messages[-1].content }}<|im_end|>")
    with pytest.raises(TemplateError) as caught:
        chat.render([*PROMPT, {"role": "user", "content": "And?"}])
    assert str(caught.value) == (
        f"the chat template of {chat.name} cannot render these messages: "
        "TemplateError: roles must alternate"
    )


# -- bridge -------------------------------------------------------------------------------------


def test_four_turns_with_two_tools_are_what_qwen3_renders(qwen3: ChatTemplate) -> None:
    ledger, own = put_together(
        qwen3,
        [
            (f"<think>\nI need the page.\n</think>\n\n{call('http://clinic.test/1')}", ("One.",)),
            (
                f"<think>\nTwo more.\n</think>\n\nI look.\n{call('a')}\n{call('b')}",
                ("Gr\u00f6\u00dfe <b>5</b>", '{"trial": "NCT1"}'),
            ),
            (f"<think>\nNot yet.\n</think>\n\n{call('c')}", ("  indented\n\n",)),
            ("<think>\nNow I know.\n</think>\n\nCompany: Acme", ()),
        ],
    )
    assert ledger == own


@pytest.mark.parametrize("family", ["qwen2.5", "llama3.1"])
def test_four_turns_with_two_tools_are_what_other_templates_render(load: Load, family: str) -> None:
    ledger, own = put_together(
        load(family),
        [
            (call("http://clinic.test/1"), ('a "quoted" \\ page',)),
            (f"I look.\n{call('a')}\n{call('b')}", ("Gr\u00f6\u00dfe <b>5</b>", '{"t": 1}')),
            (call("c"), ("line\nline",)),
            ("Company: Acme", ()),
        ],
    )
    assert ledger == own


def test_a_bridge_begins_with_the_end_of_turn(load: Load) -> None:
    for family, end in (
        ("qwen3", "<|im_end|>"),
        ("qwen2.5", "<|im_end|>"),
        ("llama3.1", "<|eot_id|>"),
    ):
        chat = load(family)
        assert chat.decode([chat.end_of_turn_id]) == end
        assert [chat.bridge(texts)[0] for texts in ((), ("a",), ("a", "b"))] == [
            chat.end_of_turn_id
        ] * 3


def test_a_generation_stops_at_the_end_of_turn_and_at_every_eos(load: Load) -> None:
    stops = {family: load(family) for family in FAMILIES}
    assert {
        family: {chat.decode([token]) for token in chat.stop_token_ids}
        for family, chat in stops.items()
    } == {
        "qwen3": {"<|im_end|>", "<|endoftext|>"},
        "qwen2.5": {"<|im_end|>", "<|endoftext|>"},
        "llama3.1": {"<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"},
    }


# Pieces that an attacker would put on a page, and what makes them harder to see.
_PIECES = (
    *(text for family in FAMILIES.values() for text in (*family.special, *family.ordinary)),
    *(
        "<|im_",
        "end|>",
        "<",
        ">",
        "|",
        "<|",
        "|>",
        "tool_",
        "call>",
        "</",
        "<tool_response",
        "think",
    ),
    *("\ue000", "\ue001", "\U000f0000", "\U0010fffd", "\x00", "\ud800", "\u200b", "\uff1c"),
    *(" ", "\n", "\t", '"', "\\", "\\n", "im_start", "a", "e\u0301", "\u6f22", "\U0001f642"),
)
hostile = st.one_of(
    st.lists(st.sampled_from(_PIECES), max_size=12).map("".join),
    st.text(max_size=40),
    st.text(alphabet="<|>/_imendstartolcp\ue000\ue001\n", max_size=40),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_tool_text_never_becomes_an_added_token(load: Load, family: str) -> None:
    chat = load(family)
    markup = {
        number: [i for i in chat.bridge(["x"] * number) if i in chat.added_ids] for number in (1, 2)
    }

    @given(texts=st.lists(hostile, min_size=1, max_size=2))
    def check(texts: list[str]) -> None:
        ids = chat.bridge(texts)
        assert [i for i in ids if i in chat.added_ids] == markup[len(texts)]

    check()


def tool_with(text: str, place: str) -> ToolSchema:
    """A tool of an MCP server with `text` somewhere in it."""
    inner: dict[str, object] = {"type": "string"}
    properties: dict[str, object] = {"url": inner}
    if place == "property":
        properties[text] = inner
    elif place in ("description", "default", "x-note"):
        inner[place] = text
    elif place == "enum":
        inner["enum"] = ["a", text]
    elif place == "key":
        inner[text] = {"deep": [text]}
    return ToolSchema(
        name=text if place == "name" else "browse",
        description=text if place == "tool" else "Read a page.",
        parameters={"type": "object", "properties": properties, "required": []},
    )


PLACES = ("name", "tool", "property", "description", "default", "enum", "key", "x-note")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tools_own_texts_never_become_added_tokens(load: Load, family: str, place: str) -> None:
    chat = load(family)
    text = " ".join((*FAMILIES[family].special, *FAMILIES[family].ordinary))
    tools = [tool_with(text, place), BROWSE]
    benign = [tool_with("a text", place), BROWSE]
    added = [id for id in chat.render_prompt(PROMPT, tools) if id in chat.added_ids]
    assert added == [id for id in chat.render_prompt(PROMPT, benign) if id in chat.added_ids]
    rendered = chat.render(PROMPT, tools=tools)
    assert chat.decode(chat.render_prompt(PROMPT, tools)) == unicodedata.normalize("NFC", rendered)


def test_what_a_template_writes_around_a_tools_text_does_not_make_a_token(load: Load) -> None:
    names = "{%- for name in tools[0].function.parameters.properties %}<{{ name }}>{% endfor %}"
    chat = load("qwen3", template="{%- if tools %}" + names + "{% endif %}" + QWEN3)
    tools = [tool_with("tool_call", "property")]
    assert chat.render(PROMPT, tools=tools).startswith("<url><tool_call>")
    prompt, token = chat.render_prompt(PROMPT, tools), chat.encode("<tool_call>")
    assert chat.decode(prompt) == chat.render(PROMPT, tools=tools)
    assert token[0] not in prompt[:10]


def test_an_added_token_in_the_users_own_prompt_stays_one(qwen3: ChatTemplate) -> None:
    prompt = ({"role": "user", "content": "Say <tool_call>."},)
    tools = [tool_with("<tool_call>", "tool")]
    (token,) = qwen3.encode("<tool_call>")
    own = qwen3.render_prompt(prompt, [BROWSE]).count(token)
    assert qwen3.render_prompt(prompt, tools).count(token) == own


def test_a_template_that_rewrites_a_tools_markup_is_refused(load: Load) -> None:
    looks = "{%- if tools and 'think' in tools[0].function.description %}Think.{% endif %}"
    chat = load("qwen3", template=looks + QWEN3)
    with pytest.raises(TemplateError) as raised:
        chat.render_prompt(PROMPT, [tool_with("<think>", "tool")])
    assert str(raised.value) == (
        f"a tool's name, description or parameters hold an added token of {chat.name}, and its "
        "chat template rewrites them, so that it cannot be told from markup"
    )


@given(text=st.lists(st.sampled_from(_PIECES), max_size=12).map("".join))
def test_hostile_text_reaches_the_student_as_it_is(qwen3: ChatTemplate, text: str) -> None:
    # The tokenizer composes accents itself (NFC); a lone surrogate cannot be encoded at all.
    shown = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    assert qwen3.decode(qwen3.bridge([text])) == (
        f"<|im_end|>\n<|im_start|>user\n<tool_response>\n{shown}\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_benign_text_is_encoded_as_the_template_would(load: Load, family: str) -> None:
    chat = load(family)
    benign = st.text(alphabet=st.characters(exclude_characters="<", exclude_categories=["Cs"]))

    @given(texts=st.lists(benign, max_size=3))
    def check(texts: list[str]) -> None:
        assert chat.bridge(texts) == chat.encode(chat.bridge_text(texts))

    check()


# -- check --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_passes_for_real_templates(load: Load, family: str) -> None:
    assert check_with_tools(load(family)) == ()


def test_the_check_tells_that_old_thinking_is_rewritten(load: Load) -> None:
    chat = load("qwen3", reasoning_mode="none")
    assert check_with_tools(chat) == (
        f"the chat template of {chat.name} rewrites earlier thinking when it renders a "
        "conversation again; rnow does not render again: the student sees what it thought",
    )


END = """        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}"""
RESULT = """        {{- content }}
        {{- '\\n</tool_response>' }}"""
OPENING = """{{- '\\n<tool_response>\\n' }}"""
DEPENDS = "what follows an assistant's turn depends on that turn or on earlier ones. For "
BAD_TEMPLATES = {
    "another opening in later turns": (
        QWEN3.replace(OPENING, "{{- '\\n<tool_response>' + ('\\n' if loop.index0 < 7 else '') }}"),
        DEPENDS + "calls in turn 10 (tool results: 1) at character 43 "
        "'user\\n<tool_response>one\\n</tool_response><|im_end|>' stands where "
        "'user\\n<tool_response>\\none\\n</tool_response><|im_end|' was expected",
    ),
    "another opening after a system message": (
        QWEN3.replace(OPENING, "{{- '#' if messages[0].role == 'system' else '' }}" + OPENING),
        DEPENDS + "calls in turn 1 (tool results: 1) at character 27 "
        "'d|>\\n<|im_start|>user#\\n<tool_response>\\none\\n</tool_r' stands where "
        "'d|>\\n<|im_start|>user\\n<tool_response>\\none\\n</tool_re' was expected",
    ),
    "results escaped to ASCII": (
        QWEN3.replace("{{- content }}\n", "{{- content | tojson(ensure_ascii=true) }}\n"),
        "the tool texts ['', 'second'] are encoded otherwise when markup is kept apart; "
        "at character 81 'e>\\n<tool_response>\\n\"\\\\ue012\\\\ue007\\\\ue005\\\\ue00f\\\\ue00e' "
        "stands where 'e>\\n<tool_response>\\n\"second\"\\n</tool_response><|im_e' was expected",
    ),
    "results escaped as HTML": (
        QWEN3.replace("{{- content }}\n", "{{- content | e }}\n"),
        "the tool texts ['<div class=\"x\">5 < 6 & 7 > 2</div> [link](http://clinic.test'] are "
        "encoded otherwise when markup is kept apart; at character 44 "
        "'ser\\n<tool_response>\\n<div class=&#34;x&#34;>5 < 6 &' stands where "
        "'ser\\n<tool_response>\\n&lt;div class=&#34;x&#34;&gt;5' was expected",
    ),
    "errors announced": (
        QWEN3.replace(RESULT, "{{- 'Error: ' if 'tool_error' in content else '' }}" + RESULT),
        "the tool texts [\"<tool_error>Tool 'x' not found</tool_error>\"] are encoded otherwise "
        "when markup is kept apart; at character 44 "
        "\"ser\\n<tool_response>\\n<tool_error>Tool 'x' not found\" stands where "
        "\"ser\\n<tool_response>\\nError: <tool_error>Tool 'x' no\" was expected",
    ),
    "old results shortened": (
        QWEN3.replace(RESULT, RESULT.replace("content", "content[: loop.revindex * -1 + 12]")),
        "a conversation of two tool turns, put together turn by turn, is not what the template "
        "renders; at character 861 'l_response>\\nThe first p\\n</tool_response><|im_end|>' stands "
        "where 'l_response>\\nThe firs\\n</tool_response><|im_end|>\\n<|' was expected",
    ),
}


BAD_AFTER_ANSWERS = {
    "a space after long answers": (
        QWEN3.replace(END, "{{- ' ' if content | length > 500 else '' }}" + END),
        DEPENDS + "a long answer in turn 1 at character 0 "
        "' <|im_end|>\\n<|im_start|>assist' stands where "
        "'<|im_end|>\\n<|im_start|>assista' was expected",
    ),
    "long answers cut": (
        QWEN3.replace("content.lstrip('\\n') }}", "content[:500] }}"),
        "leaves out or rewrites what the assistant said "
        "(a long answer in turn 1): "
        "'The trial was run by three companies. The trial was run by t' is not in its rendering",
    ),
}


@pytest.mark.parametrize("what", [*BAD_TEMPLATES, *BAD_AFTER_ANSWERS])
def test_the_check_refuses(load: Load, what: str) -> None:
    template, reason = (BAD_TEMPLATES | BAD_AFTER_ANSWERS)[what]
    assert template != QWEN3
    chat = load("qwen3", template=template)
    goes_on = RolloutSettings(max_turns=4, termination_policy="max_turns")
    limits = goes_on if what in BAD_AFTER_ANSWERS else RolloutSettings(max_turns=4)
    tools = [] if what in BAD_AFTER_ANSWERS else [BROWSE]
    with pytest.raises(TemplateError) as caught:
        check_template(chat, PROMPT, tools, limits=limits)
    message = str(caught.value)
    assert (
        message.removeprefix(f"the chat template of {chat.name} ").removeprefix("cannot be used: ")
        == reason
    )


# -- loading ------------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        ChatTemplate.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no tokenizer.json; rnow needs a fast tokenizer, which transformers' "
        "AutoTokenizer.from_pretrained(…).save_pretrained(…) writes there"
    )


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path, "qwen3")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=f"^cannot load the tokenizer of {tmp_path}: "):
        ChatTemplate.load(tmp_path)


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, "qwen3")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(TemplateError) as caught:
        ChatTemplate.load(folder)
    assert str(caught.value) == (
        f"{folder} has no chat template; use an instruct model, "
        "or put a chat_template.jinja into its folder"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            "goes on after an assistant's turn with '\\n', which does not begin with an added "
            "token: there is no token by which the student could end its turn",
        ),
        (
            "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}",
            "leaves out what the assistant said",
        ),
    ],
)
def test_a_template_without_an_end_of_turn_is_refused(
    tmp_path: Path, template: str, message: str
) -> None:
    folder = tokenizer_folder(tmp_path, "qwen3", template=template)
    with pytest.raises(TemplateError) as caught:
        ChatTemplate.load(folder)
    assert str(caught.value) == f"the chat template of {folder} {message}"


def test_a_model_without_a_generation_config_stops_at_the_tokenizers_eos(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, "qwen3")
    (folder / "generation_config.json").unlink()
    chat = ChatTemplate.load(folder)
    assert [chat.decode([token]) for token in chat.stop_token_ids] == ["<|im_end|>"]


@pytest.mark.parametrize("how", ["pads", "cuts"])
def test_a_tokenizers_padding_and_truncation_are_off(tmp_path: Path, how: str) -> None:
    folder = tokenizer_folder(tmp_path, "qwen3")
    whole = ChatTemplate.load(folder).render_prompt(PROMPT, [BROWSE])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if how == "pads":
        tokenizer.enable_padding(length=2 * len(whole), pad_token="<|endoftext|>")
    else:
        tokenizer.enable_truncation(len(whole) // 2)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert ChatTemplate.load(folder).render_prompt(PROMPT, [BROWSE]) == whole


# -- calls --------------------------------------------------------------------------------------


def test_calls_are_read_from_ids(qwen3: ChatTemplate) -> None:
    ids = qwen3.encode(f"<think>\n{call('no')}\n</think>\n\n{call('a')}\n{call('b')}")
    assert [found.arguments for found in qwen3.parse_calls(ids)] == [{"url": "a"}, {"url": "b"}]
    assert [found.error for found in qwen3.parse_calls(ids[:-1])] == [
        None,
        "Invalid JSON in tool call: the closing </tool_call> is missing",
    ]
    assert len(qwen3.parse_calls(ids[:-1], stopped=False)) == 1


def test_where_the_template_opens_the_thinking_calls_come_after_its_end(load: Load) -> None:
    opened = QWEN3.replace(
        "'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}"
    )
    assert opened != QWEN3
    chat = load("qwen3", template=opened)
    ids = chat.encode(f"{call('thought of')}\n</think>\n\n{call('meant')}")
    assert [found.arguments for found in chat.parse_calls(ids)] == [{"url": "meant"}]
