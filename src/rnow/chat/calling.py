r"""What one template does around tool calls: how they are written, what ends a turn, the answers.

    … <tool_call>\n{"name": "browse", "arguments": {"url": "rnowassistantcontent"}}\n</tool_call>
                                                          value | tail ─────────────▶ | end
    <|im_end|>\n<|im_start|>user\n<tool_response>\n … \n</tool_response><|im_end|>\n …assistant\n
    bridge: from the token that ends the turn up to where the next generation starts

Answers are rendered behind calls that they belong to: many templates look the tool's name or the
call's id up there, and some write answers nowhere else.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rnow.chat.calls.form import Form, Thinking, behind, marks_in, read_calls
from rnow.chat.calls.probe import (
    KEYS,
    NAME,
    QUESTION,
    TOOLS,
    RenderText,
    Samples,
    Writing,
    default_id,
    schemas_of,
    take_samples,
)
from rnow.chat.calls.table import find_form
from rnow.chat.markup import Markup
from rnow.errors import TemplateError
from rnow.records import Message

# Stands for what the student sampled; letters only, so that no template trims or escapes it.
SENTINEL = "rnowassistantcontent"
UNNAMED = "unknown"  # the tool of a call whose name could not be read
_RESULT = "rnowresult"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calling:
    """How the calls of one template's turns are read, and answered."""

    form: Form
    writing: Writing
    thinking: Thinking
    takes_many: bool  # a turn may have several calls
    tail: str  # what follows the last value of a call, up to the token that ends the turn
    end_id: int  # that token
    marks: tuple[str, ...]  # of calls and answers

    def turn(
        self, texts: Sequence[str], names: Sequence[str] = (), ids: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Return an assistant's message with a call for each text, and the tools' answers."""
        return _turn(self.writing, texts, names, ids, takes_many=self.takes_many)

    def tail_of(self, turn: Sequence[Message]) -> str:
        """Return what follows the last value of the calls of `turn`."""
        calls = [*turn[0].get("tool_calls", ())]
        # Mistral writes a call's id behind its arguments.
        return self.tail.replace(default_id(0), calls[-1]["id"]) if calls else self.tail

    def bridge_of(self, rendered: str, turn: Sequence[Message]) -> str:
        """Return what stands behind the last call of a conversation that ends with `turn`."""
        _, found, after = rendered.rpartition(SENTINEL)
        tail = self.tail_of(turn)
        if not found or not after.startswith(tail):
            raise TemplateError("what ends a turn with tool calls depends on what was answered")
        return after[len(tail) :]


def find_calling(
    render: RenderText, tokenizer: Any, markup: Markup, eos_ids: Collection[int]
) -> Calling:
    """Find out how a template writes calls and answers; raise TemplateError with the reason."""
    samples = take_samples(render, tokenizer)
    if samples is None:
        raise TemplateError(
            "writes no tool calls: those of an assistant's message are left out of its rendering"
        )
    form = find_form(samples)
    if form is None:
        raise TemplateError(
            "writes tool calls in a form that rnow does not read; a call of the tool "
            f"{NAME!r} is {samples.words[:400]!r}"
        )
    turn = _turn(samples.writing, [_RESULT], [NAME], (), takes_many=False)
    prompt = render([QUESTION], tools=TOOLS)
    try:
        rendered = render([QUESTION, *turn], tools=TOOLS)
    except TemplateError as error:
        reason = error.__cause__ or error
        raise TemplateError(f"has no form for tool results: {reason}") from error
    before, _, after = rendered.partition(SENTINEL)
    if _RESULT not in after:
        raise TemplateError("has no form for tool results: it leaves out what a tool answered")
    said = samples.thinking.reopened(behind(prompt, before))
    tail, end_id = _end_of_call(form, samples, said, after, markup, eos_ids)
    return Calling(
        form=form,
        writing=samples.writing,
        thinking=samples.thinking,
        takes_many=samples.two is not None,
        tail=tail,
        end_id=end_id,
        marks=marks_in(*form.marks, after[len(tail) :].replace(_RESULT, "\n")),
    )


def _end_of_call(
    form: Form,
    samples: Samples,
    said: str,
    after: str,
    markup: Markup,
    eos_ids: Collection[int],
) -> tuple[str, int]:
    """Return what follows a call's last value, and the token that ends the turn behind it.

    The call must be whole before that token. Where a token of the model's ends follows, it is that
    one, else the first.
    """
    ends: list[tuple[str, int]] = []
    for start, id in markup.find(after[: after.find(_RESULT)]):
        if not ends and not _is_whole(form, samples, said + SENTINEL + after[:start]):
            continue
        ends.append((after[:start], id))
    if not ends:
        raise TemplateError(
            f"goes on after a tool call with {after[:60]!r}: there is no added token by which the "
            "student could end its turn"
        )
    return next((end for end in ends if end[1] in eos_ids), ends[0])


def _is_whole(form: Form, samples: Samples, text: str) -> bool:
    calls = read_calls(
        form, text, thinking=samples.thinking, schemas=schemas_of(TOOLS), stopped=False
    )
    return [(call.name, dict(call.arguments)) for call in calls] == [(NAME, {KEYS[0]: SENTINEL})]


def _turn(
    writing: Writing,
    texts: Sequence[str],
    names: Sequence[str],
    ids: Sequence[str],
    *,
    takes_many: bool,
) -> list[dict[str, Any]]:
    names = [*names, *[UNNAMED] * (len(texts) - len(names))]
    called = names if takes_many else names[:1]
    values = ["x"] * (len(called) - 1) + [SENTINEL]
    calls = [(name, {KEYS[0]: value}) for name, value in zip(called, values, strict=True)]
    assistant = writing.message(calls, ids)
    own_ids = [call["id"] for call in assistant.get("tool_calls", ())] or [""]
    return [
        assistant,
        *(
            {
                "role": "tool",
                "tool_call_id": own_ids[min(number, len(own_ids) - 1)],
                "name": name,
                "content": text,
            }
            for number, (name, text) in enumerate(zip(names, texts, strict=True))
        ),
    ]
