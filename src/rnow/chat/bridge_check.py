"""Whether appending bridges gives what the chat template would give by rendering everything again.

The token ledger rests on one property of a template: what it writes after an assistant's turn, up
to the next generation, depends on the tools' texts alone. A template is a program and cannot be
proved to have it, so it is tried, for as much of it as a project needs:

    one turn      nothing is ever appended: the end of turn, which loading finds, is all
    tools         after the project's first prompt with its tools, or a bare question; after 0, 1,
                  2, 9 earlier calls; behind no text or a long one; with one, two, three results;
                  their texts empty, padded, JSON, markup-like, other scripts
    going on      turns after an answer (termination_policy: max_turns): the same with answers

and at last a whole conversation of two tool turns is compared id by id. A template may strip or
rewrite *old* thinking when it renders again (Qwen3's does): the ledger does not render again, so
that is told and allowed.
"""

import re
from collections.abc import Sequence

from rnow.chat.calling import SENTINEL
from rnow.chat.calls.form import behind, common_start
from rnow.chat.calls.probe import QUESTION, THOUGHT, TOOLS
from rnow.chat.template import ChatTemplate
from rnow.config.settings import RolloutSettings
from rnow.errors import TemplateError
from rnow.records import Message
from rnow.tools.base import ToolCall, ToolSchema

_ANSWERS = {
    "a short answer": "Yes.",
    "a long answer": "The trial was run by three companies. " * 60 + "That is all.",
    "an answer that ends in a newline": "One.\n\nTwo.\n",
    "an answer after thinking": "<think>\nLet me see.\n</think>\n\nIt is 42.",
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


def check_template(
    chat: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[ToolSchema] = (),
    *,
    limits: RolloutSettings,
) -> tuple[str, ...]:
    """Raise TemplateError unless bridges can stand for renderings; return notices for the user.

    `messages` is a prompt of the project: what it is rendered with must not matter either.
    """
    _check_prompt(chat, messages, tools)
    notices = chat.ends.notices(chat.name, chat.decode)
    if chat.reads_the_clock(messages, tools):
        notices += (
            f"the chat template of {chat.name} writes the day into each prompt: in every run and "
            f"evaluation it is {chat.today}, so that they have the same prompts",
        )
    if limits.max_turns > 1 and limits.termination_policy == "max_turns":
        _check_answers(chat, messages, tools)
    if tools and limits.max_turns > 1:
        _check_calls(chat, messages, tools)
        _check_tool_texts(chat)
        notices += _check_whole_conversation(chat, messages, tools)
    elif tools and chat.calling is None:
        notices += (f"the chat template of {chat.name} {chat.why_no_calls}; no call is read",)
    return notices


def _check_prompt(
    chat: ChatTemplate, messages: Sequence[Message], tools: Sequence[ToolSchema]
) -> None:
    asked = str(messages[-1].get("content") or "").strip() if messages else ""
    if not asked:
        return
    rendered = chat.render(messages, tools=tools)
    if asked not in rendered and asked.split()[-1] not in rendered:
        raise TemplateError(
            f"the chat template of {chat.name} leaves out the last message of a prompt: "
            f"{asked[:60]!r} is not in its rendering {rendered[-60:]!r}. It may be made for "
            "messages of images and texts alone"
        )


def _check_answers(
    chat: ChatTemplate, messages: Sequence[Message], tools: Sequence[ToolSchema]
) -> None:
    """Check what follows an answer where the rollout goes on after one."""
    bridge = chat.bridge_text(())
    ids = chat.bridge(())
    if ids[:1] != [chat.end_of_turn_id] or ids != chat.encode(bridge):
        raise TemplateError(
            f"the chat template of {chat.name} cannot be used with rollout.termination_policy: "
            f"max_turns: it ends an answer with {chat.decode([chat.end_of_turn_id])!r} and goes on "
            f"after one with {bridge[:60]!r}"
        )
    for start, shown in (([QUESTION], ()), (messages, tools)):
        for num_earlier in (0, 1, 2, 9):
            history = [*start, *[_message("assistant", "Yes.")] * num_earlier]
            for what, content in _ANSWERS.items():
                rendered = chat.render([*history, _message("assistant", content)], tools=shown)
                where = f"{what} in turn {num_earlier + 1}"
                _check_ending(chat, rendered, content, bridge, where)


def _check_ending(chat: ChatTemplate, rendered: str, content: str, bridge: str, where: str) -> None:
    # What comes before the last blank line is thinking that the template may rewrite.
    shown = content.rpartition("\n\n")[2]
    if rendered.endswith((shown + bridge, shown.rstrip() + bridge)):
        return
    _, found, after = rendered.rpartition(shown.rstrip())
    if not found:
        raise TemplateError(
            f"the chat template of {chat.name} leaves out or rewrites what the assistant said "
            f"({where}): {shown[:60]!r} is not in its rendering"
        )
    raise _depends(chat, where, bridge, after)


def _check_calls(
    chat: ChatTemplate, messages: Sequence[Message], tools: Sequence[ToolSchema]
) -> None:
    """Check what follows calls: neither what was said before nor the tools may change it."""
    calling = chat.need_calling()
    name = tools[0].name
    earlier = calling.turn(["result"], [name])
    for start, shown in (([QUESTION], TOOLS), (messages, tools)):
        for results in (("one",), ("one", "two"), ("one", "two", "three")):
            names = [name] * len(results)
            bridge = chat.bridge_text(results, names=names)
            for num_earlier in (0, 1, 2, 9):
                history = [*start, *earlier * num_earlier]
                for said in ("", _ANSWERS["a long answer"]):
                    own = _own_bridge(chat, history, results, names, said, shown)
                    if own not in (None, bridge):
                        kind = "calls behind a long text" if said else "calls"
                        where = f"{kind} in turn {num_earlier + 1} (tool results: {len(results)})"
                        raise _depends(chat, where, bridge, str(own))


def _own_bridge(
    chat: ChatTemplate,
    history: Sequence[Message],
    results: Sequence[str],
    names: Sequence[str],
    said: str,
    tools: Sequence[ToolSchema],
) -> str | None:
    """Return what the template writes behind calls; None if it does not have `said` before them."""
    calling = chat.need_calling()
    assistant, *answers = calling.turn(results, names)
    if said:
        assistant = assistant | {"content": said}
    try:
        rendered = chat.render([*history, assistant, *answers], tools=tools)
        if said and said not in rendered[: rendered.rfind(SENTINEL)]:
            return None
        return calling.bridge_of(rendered, [assistant, *answers])
    except TemplateError as error:
        if said:
            return None
        raise TemplateError(
            f"the chat template of {chat.name} cannot be used after "
            f"{len(history)} messages: {error}"
        ) from error


def _depends(chat: ChatTemplate, where: str, expected: str, actual: str) -> TemplateError:
    return TemplateError(
        f"the chat template of {chat.name} cannot be used: what follows an assistant's turn "
        f"depends on that turn or on earlier ones. For {where} "
        f"{_first_difference(expected, actual)}"
    )


def _check_tool_texts(chat: ChatTemplate) -> None:
    chat.check_markup()
    for text in _TOOL_TEXTS:
        # Some tokenizers have HTML tags or runs of spaces as added tokens: not for tools to make.
        if not chat.added_ids.isdisjoint(chat.encode(text)):
            continue
        for texts in ((text,), (text, "second")):
            own = chat.encode(chat.bridge_text(texts))
            ours = chat.bridge(texts)
            if own != ours:
                raise TemplateError(
                    f"the chat template of {chat.name} cannot be used: the tool texts "
                    f"{[text[:60] for text in texts]} are encoded otherwise when markup is kept "
                    f"apart; {_first_difference(chat.decode(own), chat.decode(ours))}"
                )


def _check_whole_conversation(
    chat: ChatTemplate, messages: Sequence[Message], tools: Sequence[ToolSchema]
) -> tuple[str, ...]:
    conversation = list(messages)
    ids = chat.render_prompt(messages, tools)
    text = chat.render(messages, tools=tools)
    for results in (("The first page.",), ("The second page.", "The third.")):
        names = [tools[0].name] * len(results)
        content, turn = _turn_after(chat, conversation, results, names, tools)
        ids += chat.encode(content) + chat.bridge(results, _calls_of(names))
        text += content + chat.bridge_text(results, names=names)
        conversation += turn
    own_text = chat.render(conversation, tools=tools)
    own_ids = chat.render_prompt(conversation, tools)
    if ids == own_ids:
        return ()
    if text != own_text and _unthought(chat, text) == _unthought(chat, own_text):
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


def _turn_after(
    chat: ChatTemplate,
    conversation: Sequence[Message],
    results: Sequence[str],
    names: Sequence[str],
    tools: Sequence[ToolSchema],
) -> tuple[str, list[Message]]:
    """Return a thinking and calling turn as the student would write it, and as messages."""
    calling = chat.need_calling()
    prompt = chat.render(conversation, tools=tools)
    for thought in (THOUGHT, {}):
        assistant, *answers = calling.turn(results, names)
        turn: list[Message] = [assistant | thought, *answers]
        try:
            rendered = chat.render([*conversation, *turn], tools=tools)
        except TemplateError:
            if not thought:
                raise
            continue
        before, _, _ = rendered.rpartition(SENTINEL)
        said = before.removeprefix(prompt)
        if said == before:  # the prompt says that there is no thinking; the rendering has some
            said = calling.thinking.after(behind(prompt, before)).lstrip()
        return said + SENTINEL + calling.tail_of(turn), turn
    raise AssertionError("unreachable")


def _unthought(chat: ChatTemplate, text: str) -> str:
    thinking = chat.need_calling().thinking
    return re.sub(
        rf"{re.escape(thinking.open)}.*?{re.escape(thinking.close)}\s*", "", text, flags=re.DOTALL
    )


def _calls_of(names: Sequence[str]) -> list[ToolCall]:
    return [ToolCall(name=name, arguments={}, raw="") for name in names]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _first_difference(expected: str, actual: str) -> str:
    at = len(common_start([expected, actual]))
    start = max(0, at - 20)
    return (
        f"at character {at} {actual[start : at + 30]!r} stands "
        f"where {expected[start : at + 30]!r} was expected"
    )
