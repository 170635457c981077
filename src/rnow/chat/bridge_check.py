"""Whether appending bridges gives what the chat template would give by rendering everything again.

The token ledger rests on one property of a template: what it writes after an assistant's content,
up to the next generation, depends on the tools' texts alone. A template is a program and cannot be
proved to have it, so it is tried:

    contents   short, long, with thinking, ending in a tool call, ending in a newline
    history    the project's first prompt with its tools, or a bare question; 0, 1, 2, 9 turns
    results    none, one, two, three
    texts      empty, padded, JSON, markup-like, other scripts: encoded as the tokenizer would

and at last a whole conversation of two tool turns is compared id by id. A template may strip or
rewrite *old* thinking when it renders again (Qwen3's does): the ledger does not render again, so
that is told and allowed.
"""

import re
from collections.abc import Sequence

from rnow.chat.template import ChatTemplate
from rnow.chat.toolcalls import parse_tool_calls
from rnow.errors import TemplateError
from rnow.records import Message
from rnow.tools.base import ToolSchema

_CALL = '<tool_call>\n{"name": "look_up", "arguments": {"query": "rnow"}}\n</tool_call>'
_CONTENTS = {
    "a short answer": "Yes.",
    "a long answer": "The trial was run by three companies. " * 60 + "That is all.",
    "an answer that ends in a newline": "One.\n\nTwo.\n",
    "an answer after thinking": "<think>\nLet me see.\n</think>\n\nIt is 42.",
    "a tool call": f"I look it up.\n\n{_CALL}",
    "a tool call after thinking": f"<think>\nI should look.\n</think>\n\n{_CALL}",
}
_TOOL_TEXTS = (
    "",
    "42",
    "  padded on both sides \n",
    "Line one.\n\nLine two.",
    '{"a": "b\\n", "c": [1, null]}',
    '<div class="x">5 < 6 & 7 > 2</div> [link](http://clinic.test/)',
    "<tool_error>Tool 'x' not found</tool_error>",
    "Gr\u00f6\u00dfe \u6f22\u5b57 \U0001f642",
    "C:\\temp \"quoted\" 'single'",
    "word " * 500,
)
_THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


def check_template(
    chat: ChatTemplate, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()
) -> tuple[str, ...]:
    """Raise TemplateError unless bridges can stand for renderings; return notices for the user.

    `messages` is a prompt of the project: what it is rendered with must not matter either.
    """
    _check_contents_and_history(chat, messages, tools)
    _check_tool_texts(chat)
    return (
        *_check_whole_conversation(chat, messages, tools),
        *_notice_on_call_format(chat, messages, tools),
    )


def _check_contents_and_history(
    chat: ChatTemplate, messages: Sequence[Message], tools: Sequence[ToolSchema]
) -> None:
    bare: tuple[Sequence[Message], Sequence[ToolSchema]] = ([_message("user", "Why?")], ())
    earlier = [_message("assistant", _CONTENTS["a tool call"]), _message("tool", "result")]
    for start, shown_tools in (bare, (messages, tools)):
        for num_earlier in (0, 1, 2, 9):
            history = [*start, *earlier * num_earlier]
            for results in ((), ("one",), ("one", "two"), ("one", "two", "three")):
                for what, content in _CONTENTS.items():
                    conversation = [
                        *history,
                        _message("assistant", content),
                        *(_message("tool", text) for text in results),
                    ]
                    rendered = chat.render(conversation, tools=shown_tools)
                    where = f"{what} in turn {num_earlier + 1} (tool results: {len(results)})"
                    _check_ending(chat, rendered, content, results, where)


def _check_ending(
    chat: ChatTemplate, rendered: str, content: str, results: Sequence[str], where: str
) -> None:
    # What comes before the last blank line is thinking that the template may rewrite.
    shown = content.rpartition("\n\n")[2]
    bridge = chat.bridge_text(results)
    if rendered.endswith((shown + bridge, shown.rstrip() + bridge)):
        return
    _, found, after = rendered.rpartition(shown.rstrip())
    if not found:
        raise TemplateError(
            f"the chat template of {chat.name} leaves out or rewrites what the assistant said "
            f"({where}): {shown[:60]!r} is not in its rendering"
        )
    raise TemplateError(
        f"the chat template of {chat.name} cannot be used: what follows an assistant's turn "
        f"depends on that turn or on earlier ones. For {where} "
        f"{_first_difference(bridge, after)}"
    )


def _check_tool_texts(chat: ChatTemplate) -> None:
    for text in _TOOL_TEXTS:
        # Some tokenizers have HTML tags or runs of spaces as added tokens: not for tools to make.
        if not chat.added_ids.isdisjoint(chat.encode(text)):
            continue
        for texts in ((text,), (text, "second")):
            own = chat.encode(chat.bridge_text(texts))
            ours = chat.bridge(texts)
            if ours[0] != chat.end_of_turn_id:
                raise TemplateError(
                    f"the chat template of {chat.name} cannot be used: it ends a turn with "
                    f"{chat.decode([chat.end_of_turn_id])!r} after an answer and with "
                    f"{chat.decode(ours[:1])!r} before a tool result"
                )
            if own != ours:
                raise TemplateError(
                    f"the chat template of {chat.name} cannot be used: the tool texts "
                    f"{[text[:60] for text in texts]} are encoded otherwise when markup is kept "
                    f"apart; {_first_difference(chat.decode(own), chat.decode(ours))}"
                )


def _check_whole_conversation(
    chat: ChatTemplate, messages: Sequence[Message], tools: Sequence[ToolSchema]
) -> tuple[str, ...]:
    turns = (
        (_CONTENTS["a tool call after thinking"], ("The first page.",)),
        (f"<think>\nTwo more.\n</think>\n\n{_CALL}\n{_CALL}", ("The second page.", "The third.")),
    )
    conversation = list(messages)
    ids = chat.render_prompt(messages, tools)
    text = chat.render(messages, tools=tools)
    for content, results in turns:
        conversation.append(_message("assistant", content))
        conversation += [_message("tool", result) for result in results]
        ids += chat.encode(content) + chat.bridge(results)
        text += content + chat.bridge_text(results)
    own_text = chat.render(conversation, tools=tools)
    own_ids = chat.render_prompt(conversation, tools)
    if ids == own_ids:
        return ()
    if text != own_text and _THINKING.sub("", text) == _THINKING.sub("", own_text):
        return (
            f"the chat template of {chat.name} rewrites earlier thinking when it renders a "
            "conversation again; rnow does not render again: the student sees what it thought",
        )
    difference = (
        _first_difference(own_text, text)
        if own_text != text
        else _first_difference(chat.decode(own_ids), chat.decode(ids))
    )
    raise TemplateError(
        f"the chat template of {chat.name} cannot be used: a conversation of two tool turns, put "
        f"together turn by turn, is not what the template renders; {difference}"
    )


def _notice_on_call_format(
    chat: ChatTemplate, messages: Sequence[Message], tools: Sequence[ToolSchema]
) -> tuple[str, ...]:
    """The template also tells the model how to write a call; rnow reads one form only."""
    if not tools:
        return ()
    function = {"name": tools[0].name, "arguments": {"query": "rnow"}}
    calling = {
        **_message("assistant", ""),
        "tool_calls": [{"type": "function", "function": function}],
    }
    try:
        rendered = chat.render([*messages, calling], tools=tools)
    except TemplateError:
        rendered = ""
    prompt = chat.render(messages, tools=tools)
    calls = parse_tool_calls(rendered[_common_length(prompt, rendered) :])
    if [(call.name, call.arguments) for call in calls] == [(tools[0].name, {"query": "rnow"})]:
        return ()
    return (
        f"the chat template of {chat.name} does not write tool calls as "
        '<tool_call>{"name": …, "arguments": …}</tool_call>, the only form that rnow reads: '
        "calls that the student writes in another form are taken for answers",
    )


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _first_difference(expected: str, actual: str) -> str:
    at = _common_length(expected, actual)
    start = max(0, at - 20)
    return (
        f"at character {at} {actual[start : at + 30]!r} stands "
        f"where {expected[start : at + 30]!r} was expected"
    )


def _common_length(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
