r"""Messages to ids and back, in one model's own words.

The chat template is the only authority on what a conversation looks like. Two pieces are needed:

    prompt   <|im_start|>user … <|im_end|>\n<|im_start|>assistant\n
             rendered once, from messages
    bridge   <|im_end|>\n<|im_start|>user\n<tool_response> … <|im_start|>assistant\n
             what follows an assistant's content, up to where the next generation starts; found by
             rendering a small fixed conversation and taking what stands after that content

A conversation is never rendered again: the bridge is appended to the ids that the student sampled.
That this gives the sequence that the template would have given, bridge_check.py finds out before
training.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from rnow.chat.call_arguments import with_arguments
from rnow.chat.calling import SENTINEL, UNNAMED, Calling, find_calling
from rnow.chat.calls.form import behind, read_calls
from rnow.chat.calls.probe import QUESTION, TOOLS, default_id, find_thinking, schemas_of
from rnow.chat.ends import Ends, find_end_of_turn
from rnow.chat.markup import Markup
from rnow.chat.rendering_limit import memory_held, rendered
from rnow.chat.tokenizer_files import eos_ids_of, load_tokenizer
from rnow.chat.tool_texts import texts_of, with_texts
from rnow.config.surroundings import TODAY
from rnow.errors import TemplateError
from rnow.records import Message
from rnow.tools.base import ToolCall, ToolSchema

# End a turn with calls in families that name them in the template, whatever the files say.
_CALL_ENDS = ("<|eom_id|>", "<|call|>")
# What jinja draws by chance.
_CHANCE = re.compile(r"\|\s*random\b|\blipsum\s*\(")


class ChatTemplate:
    """The tokenizer and chat template of one model.

    end_of_turn_id: ends an answer
    stop_token_ids: what ends a generation: that, the end of a turn with calls, the student's and
        the teacher's eos tokens
    added_ids: ids that tool text never holds
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str,
        eos_ids: Collection[int],
        teacher_eos_ids: Collection[int] = (),
        options: Mapping[str, Any],
        today: date = TODAY,
    ) -> None:
        self.name = name
        self.today = today  # all that the template can read off the clock
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        # A tokenizer that was saved in the middle of a training pads or cuts what it encodes.
        self._backend.no_padding()
        self._backend.no_truncation()
        self._options = dict(options)
        source = str(tokenizer.chat_template)
        if (chance := _CHANCE.search(source)) is not None:
            raise TemplateError(
                f"the chat template of {name} draws by chance ({chance[0]}), so that no prompt is "
                "the same twice; take that out of chat_template.jinja"
            )
        self._names_xml_tools = "xml_tools" in source  # SmolLM3's name for tools
        self._markup = Markup(self._backend.to_str())
        self.added_ids = self._markup.added_ids
        self.calling: Calling | None = None
        self.why_no_calls = ""
        end = find_end_of_turn(self._render, self._markup, eos_ids, name=name)
        also = {id for _, id in self._markup.find("".join(t for t in _CALL_ENDS if t in source))}
        try:
            self.calling = find_calling(self._render, tokenizer, self._markup, {*eos_ids, *also})
        except TemplateError as error:
            self.why_no_calls = str(error)
        self.ends = Ends(
            turn=end,
            calls=frozenset({self.calling.end_id, *also} if self.calling else ()),
            student=frozenset(eos_ids),
            teacher=self.added_ids.intersection(teacher_eos_ids),
        )
        self.end_of_turn_id = end
        self.stop_token_ids = tuple(sorted(self.ends.ids))
        marks = self.calling.marks if self.calling else ()
        plain = [re.escape(mark) for mark in marks if not [*self._markup.find(mark)]]
        self._text_marks = re.compile("|".join(plain) or r"(?!)")
        self.thinking = self.calling.thinking if self.calling else find_thinking(self._render)
        answer = self._render([QUESTION, {"role": "assistant", "content": SENTINEL}], goes_on=False)
        said = behind(self._render([QUESTION]), answer).partition(SENTINEL)[0]
        self.answer_opening = self.thinking.after(said).strip()
        # Some templates open the thinking themselves; what the student samples starts inside it.
        self._opens_thinking = self._opens_thinking_after_tools = False
        if self.calling is not None:
            is_open = self.calling.thinking.is_open_at_end_of
            self._opens_thinking = is_open(self._render([QUESTION], tools=TOOLS))
            self._opens_thinking_after_tools = is_open(self.bridge_text(["x"]))

    @classmethod
    @memory_held()
    def load(
        cls,
        model_path: str | Path,
        *,
        reasoning_mode: str | None = None,
        teacher: Path | None = None,
        today: date = TODAY,
    ) -> "ChatTemplate":
        """Load from a model folder or hub name; with the folder of a teacher, its ends count too.

        `today` is what the template may write of the day.

        `reasoning_mode` "disabled" and "none" render with enable_thinking=False, any other with
        True; None leaves it to the template.
        """
        tokenizer, eos_ids = load_tokenizer(model_path)
        return cls(
            tokenizer,
            name=str(model_path),
            eos_ids=eos_ids,
            teacher_eos_ids=() if teacher is None else eos_ids_of(teacher),
            options=_template_options(reasoning_mode),
            today=today,
        )

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSchema] = (),
        goes_on: bool = True,
    ) -> str:
        """Return the template's text of a conversation.

        It ends where the assistant goes on; `goes_on` False: where the last message ends.
        """
        as_text = self.calling is not None and self.calling.writing.arguments_as_text
        prepared = [with_arguments(message, as_text=as_text) for message in messages]
        return self._render(prepared, tools=tools, goes_on=goes_on)

    def reads_the_clock(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> bool:
        """Say whether a prompt would be another one on another day."""
        days = (self.today, self.today + timedelta(days=400))
        one, other = (self._render(messages, tools=tools, today=day) for day in days)
        return one != other

    def _render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSchema] = (),
        goes_on: bool = True,
        today: date | None = None,
    ) -> str:
        schemas = [tool.as_openai() for tool in tools] or None
        named = {"xml_tools": schemas} if self._names_xml_tools else {}
        return rendered(
            lambda: self._tokenizer.apply_chat_template(
                list(messages),
                tools=schemas,
                add_generation_prompt=goes_on,
                tokenize=False,
                strftime_now=(today or self.today).strftime,
                **named,
                **self._options,
            ),
            name=self.name,
        )

    def render_prompt(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema] = ()
    ) -> list[int]:
        """Return the ids of a prompt, up to where the assistant starts.

        An added token in a message is the user's own; what tools are called or do makes none.
        """
        text = self.render(messages, tools=tools)
        ids = self.encode(text)
        if not tools:
            return ids
        texts = texts_of(tools)

        def render(hidden: Sequence[str]) -> str:
            shown = with_texts(tools, dict(zip(texts, hidden, strict=False)))
            return self.render(messages, tools=shown)

        # The text itself is only there so that none of its characters stands for another one.
        kept_apart = self._markup.encode([*texts, text], render)
        if self._added_in(ids) == self._added_in(kept_apart):
            return ids
        if self.decode(kept_apart) != self.decode(ids):
            raise TemplateError(
                f"a tool's name, description or parameters hold an added token of {self.name}, and "
                "its chat template rewrites them, so that it cannot be told from markup"
            )
        return kept_apart

    def bridge(self, tool_texts: Sequence[str], calls: Sequence[ToolCall] = ()) -> list[int]:
        """Return what stands between the end of an assistant's content and its next generation.

        One text for each tool result, in the order of the calls; without any, the next generation
        follows a plain answer. The first id ends the turn: leave it out if the student sampled it.
        No id that comes from a tool's text is one of `added_ids`, and no text holds a marker of
        calls or answers.
        """
        names = [call.name or UNNAMED for call in calls]
        ids = [call.id or default_id(number) for number, call in enumerate(calls)]
        texts = [self._without_marks(text) for text in tool_texts]

        def render(parts: Sequence[str]) -> str:
            texts, rest = parts[: len(tool_texts)], parts[len(tool_texts) :]
            return self.bridge_text(texts, names=rest[: len(names)], ids=rest[len(names) :])

        try:
            return self._markup.encode([*texts, *names, *ids], render)
        except TemplateError:
            if all(call.id is None for call in calls):
                raise
        # The student may call its calls what the template does not take.
        return self.bridge(tool_texts, [replace(call, id=None) for call in calls])

    def bridge_text(
        self,
        tool_texts: Sequence[str],
        *,
        names: Sequence[str] = (),
        ids: Sequence[str] = (),
        after: Sequence[Message] = (QUESTION,),
        tools: Sequence[ToolSchema] = TOOLS,
    ) -> str:
        """Return the bridge as the template writes it, before encoding."""
        if tool_texts:
            calling = self.need_calling()
            turn = calling.turn(tool_texts, names, ids)
            return calling.bridge_of(self.render([*after, *turn], tools=tools), turn)
        answer = {"role": "assistant", "content": SENTINEL}
        _, found, bridge = self.render([*after, answer]).partition(SENTINEL)
        if not found:
            raise TemplateError(
                f"the chat template of {self.name} leaves out what the assistant said"
            )
        return bridge

    def need_calling(self) -> Calling:
        """Return how calls are written and answered; raise TemplateError where they cannot be."""
        if self.calling is None:
            raise TemplateError(
                f"the chat template of {self.name} {self.why_no_calls}. Tools need a template "
                "that writes calls and answers, as those of Qwen3, Llama 3.1, Mistral, GLM 4.5, "
                "gpt-oss and Gemma 4 do"
            )
        return self.calling

    def check_markup(self) -> None:
        """Raise TemplateError if a tool's text could hold added tokens all the same."""
        self._markup.check()

    def parse_calls(
        self,
        token_ids: Sequence[int],
        *,
        stopped: bool = True,
        tools: Sequence[ToolSchema] = (),
        after_tools: bool = False,
    ) -> tuple[ToolCall, ...]:
        """Read the calls of one turn, given without its stop token; see `read_calls`.

        A marker counts as the token that it is, not where ordinary tokens spell it. `tools` say of
        which types the arguments are; `after_tools`: the turn follows the answers of tools.
        """
        if self.calling is None:
            return ()
        found = self._markup.spelled_out(token_ids, self.decode)
        thinking = self.calling.thinking
        opens = self._opens_thinking_after_tools if after_tools else self._opens_thinking
        calls = read_calls(
            self.calling.form,
            thinking.open + found.text if opens else found.text,
            thinking=thinking,
            schemas=schemas_of(tools),
            stopped=stopped,
        )
        return tuple(
            replace(
                call,
                name=found.show(call.name),
                arguments=found.show(dict(call.arguments)),
                raw=found.show(call.raw),
                error=found.show(call.error),
            )
            for call in calls
        )

    def before_calls(self, text: str) -> str:
        """Return what the text of a turn, without its thinking, says before the first call."""
        start = None if self.calling is None else self.calling.form.find(text, 0, {})
        return text[:start]

    def encode(self, text: str) -> list[int]:
        """Encode as the tokenizer does: characters of an added token become that token."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`, added tokens included."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=False)
        return text

    def _added_in(self, ids: Sequence[int]) -> list[int]:
        return [id for id in ids if id in self.added_ids]

    def _without_marks(self, text: str) -> str:
        """Break what would read as a marker of calls or answers; tokens are kept out anyway."""
        return self._text_marks.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def _template_options(reasoning_mode: str | None) -> dict[str, Any]:
    if reasoning_mode is None:
        return {}
    return {"enable_thinking": reasoning_mode not in ("disabled", "none")}
