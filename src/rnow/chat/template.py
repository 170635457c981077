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

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rnow.chat.markup import Markup
from rnow.chat.rendering_limit import rendered
from rnow.chat.tool_texts import texts_of, with_texts
from rnow.chat.toolcalls import parse_tool_calls
from rnow.errors import ModelError, TemplateError
from rnow.records import Message
from rnow.tools.base import ToolCall, ToolSchema

# Stands for what the student sampled; letters only, so that no template trims or escapes it.
_CONTENT = "rnowassistantcontent"


class ChatTemplate:
    """The tokenizer and chat template of one model.

    stop_token_ids: what ends a generation: the template's end of turn, the model's eos tokens
    end_of_turn_id: the id that every bridge begins with
    added_ids: ids that tool text never holds
    """

    def __init__(
        self, tokenizer: Any, *, name: str, eos_ids: Collection[int], options: Mapping[str, Any]
    ) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._options = dict(options)
        self._markup = Markup(self._backend.to_str())
        self.added_ids = self._markup.added_ids
        self.end_of_turn_id = self._first_bridge_id()
        self.stop_token_ids = tuple(sorted({self.end_of_turn_id, *eos_ids}))
        # Some templates open the thinking themselves; what the student samples starts inside it.
        start = self.bridge_text(())
        self._opens_thinking = start.rfind("<think>") > start.rfind("</think>")

    @classmethod
    def load(cls, model_path: str | Path, *, reasoning_mode: str | None = None) -> "ChatTemplate":
        """Load from a model folder or hub name.

        `reasoning_mode` "disabled" and "none" render with enable_thinking=False, any other with
        True; None leaves it to the template.
        """
        from transformers import AutoTokenizer
        from transformers.utils import cached_file

        if Path(model_path).is_dir() and not (Path(model_path) / "tokenizer.json").is_file():
            # transformers would ask for packages that do not help.
            raise ModelError(
                f"{model_path} has no tokenizer.json; rnow needs a fast tokenizer, which "
                "transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…) writes there"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(model_path), trust_remote_code=False)
            generation_config = cached_file(
                str(model_path),
                "generation_config.json",
                _raise_exceptions_for_missing_entries=False,
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot load the tokenizer of {model_path}: {error}") from error
        if not tokenizer.is_fast:
            raise ModelError(f"{model_path} has no tokenizer.json; rnow needs a fast tokenizer")
        if not tokenizer.chat_template:
            raise TemplateError(
                f"{model_path} has no chat template; use an instruct model, "
                "or put a chat_template.jinja into its folder"
            )
        eos_ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
        if generation_config is not None:
            eos_ids |= _eos_ids(json.loads(Path(generation_config).read_text()))
        return cls(
            tokenizer,
            name=str(model_path),
            eos_ids=eos_ids,
            options=_template_options(reasoning_mode),
        )

    def render(self, messages: Sequence[Message], *, tools: Sequence[ToolSchema] = ()) -> str:
        """Return the template's text of a conversation, up to where the assistant goes on."""
        return rendered(
            lambda: self._tokenizer.apply_chat_template(
                [_with_parsed_arguments(message) for message in messages],
                tools=[tool.as_openai() for tool in tools] or None,
                add_generation_prompt=True,
                tokenize=False,
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

    def bridge(self, tool_texts: Sequence[str]) -> list[int]:
        """Return what stands between the end of an assistant's content and its next generation.

        One text for each tool result, in the order of the calls; without any, the next generation
        follows a plain answer. The first id ends the turn: leave it out if the student sampled it.
        No id that comes from a tool's text is one of `added_ids`.
        """
        return self._markup.encode(tool_texts, self.bridge_text)

    def bridge_text(self, tool_texts: Sequence[str]) -> str:
        """Return the bridge as the template writes it, before encoding."""
        tool_messages = [{"role": "tool", "content": text} for text in tool_texts]
        question = {"role": "user", "content": "x"}
        answer = {"role": "assistant", "content": _CONTENT}
        _, found, bridge = self.render([question, answer, *tool_messages]).partition(_CONTENT)
        if not found:
            raise TemplateError(
                f"the chat template of {self.name} leaves out what the assistant said"
            )
        return bridge

    def parse_calls(
        self, token_ids: Sequence[int], *, stopped: bool = True
    ) -> tuple[ToolCall, ...]:
        """Read the calls of one turn, given without its stop token; see `parse_tool_calls`."""
        text = self.decode(token_ids)
        if self._opens_thinking:
            text = "<think>" + text
        return parse_tool_calls(text, stopped=stopped)

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

    def _first_bridge_id(self) -> int:
        bridge = self.bridge(())
        if not bridge or bridge[0] not in self.added_ids:
            raise TemplateError(
                f"the chat template of {self.name} goes on after an assistant's turn with "
                f"{self.bridge_text(())[:40]!r}, which does not begin with an added token: "
                "there is no token by which the student could end its turn"
            )
        return bridge[0]


def _template_options(reasoning_mode: str | None) -> dict[str, Any]:
    if reasoning_mode is None:
        return {}
    return {"enable_thinking": reasoning_mode not in ("disabled", "none")}


def _eos_ids(generation_config: Mapping[str, Any]) -> set[int]:
    eos = generation_config.get("eos_token_id")
    if eos is None:
        return set()
    return set(eos) if isinstance(eos, list) else {int(eos)}


def _with_parsed_arguments(message: Message) -> dict[str, Any]:
    """Turn the arguments of tool calls into objects.

    OpenAI's form has JSON text there, which most templates would quote a second time.
    """
    copy = dict(message)
    if copy.get("tool_calls"):
        copy["tool_calls"] = [_parsed_call(call) for call in copy["tool_calls"]]
    return copy


def _parsed_call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if function is None or not isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
