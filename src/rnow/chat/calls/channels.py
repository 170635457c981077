r"""Messages with a header that says to whom: gpt-oss.

    <|channel|>analysis<|message|>Which page?<|end|>                       thinking: to nobody
    <|start|>assistant to=functions.browse<|channel|>commentary json<|message|>{"url": "…"}<|call|>
    <|start|>assistant<|channel|>commentary to=functions.browse <|constrain|>json<|message|>{…}
    <|start|>assistant<|channel|>final<|message|>The first.<|return|>

The template writes the recipient before the channel, the model mostly behind it: both are read. A
message to nobody is none, whatever it holds.
"""

import re
from dataclasses import dataclass

from rnow.chat.calls.form import Read, Schemas, malformed
from rnow.chat.calls.json_value import arguments_of, decode
from rnow.chat.calls.probe import NAME, Samples
from rnow.tools.base import ToolCall

_HEADER = re.compile(
    r"(?:\A|<\|start\|>)(?P<header>(?:(?!<\|message\|>|<\|start\|>|<\|end\|>).)*)<\|message\|>",
    re.DOTALL,
)
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<>]*)")
_END = re.compile(r"<\|(?:call|end|return|start)\|>")
_AT_END = re.compile(rf"\s*(?:\Z|{_END.pattern})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    @property
    def marks(self) -> tuple[str, ...]:
        return ("<|start|>", "<|message|>", "<|channel|>", "<|call|>", "<|end|>")

    def find(self, text: str, at: int, schemas: Schemas) -> int | None:
        for match in _HEADER.finditer(text, at):
            if _RECIPIENT.search(match["header"]):
                return match.start()
        return None

    def read(self, text: str, at: int, schemas: Schemas) -> Read:
        header = _HEADER.match(text, at)
        assert header is not None
        recipient = _RECIPIENT.search(header["header"])
        assert recipient is not None
        start = header.end()
        try:
            value, end = decode(text, start)
            if not _AT_END.match(text, end):
                raise ValueError(f"Extra data: {text[end:][:40]!r}")
            arguments = arguments_of(value)
        except (ValueError, RecursionError) as error:
            ended = _END.search(text, start)
            end = len(text) if ended is None else ended.start()
            call = malformed(text[start:end].strip(), error)
            return Read(calls=(call,), end=end, is_whole=ended is not None)
        call = ToolCall(name=recipient[1], arguments=arguments, raw=text[start:end].strip())
        return Read(calls=(call,), end=end)


def find_channels(samples: Samples) -> Channels | None:
    """Derive the form from what a template writes; None if it writes another."""
    header = _HEADER.search(samples.words)
    is_meant = header is not None and f"to=functions.{NAME}" in header["header"]
    return Channels() if is_meant else None
