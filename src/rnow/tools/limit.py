"""How long a tool's text may be: 1 MB in any case, and `rollout.max_tool_response` tokens.

Tokens are those of the student, counted as the ledger will count them: added tokens, special or
not, are plain text in what a tool says. A text that was cut ends with a note that says so, and the
note is within the cap.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MAX_TEXT_BYTES = 1_000_000  # before anything is tokenized
_NOTE = "\n[The rest of this result was cut.]"


class TokenLimiter:
    """Counts and cuts texts.

    limiter = TokenLimiter(Path("model/tokenizer.json"), 1500)
    text, truncated = limiter.cut(text)

    `max_tokens` None: no cap on tokens. `tokenizer_file` None: tokens cannot be counted, so
    `max_tokens` must be None too. `max_chars` is the old key `rollout.max_tool_response_chars`.
    """

    def __init__(
        self, tokenizer_file: Path | None, max_tokens: int | None, *, max_chars: int | None = None
    ) -> None:
        if tokenizer_file is None and max_tokens is not None:
            raise ValueError(f"a cap of {max_tokens} tokens needs a tokenizer.json to count with")
        self.max_tokens = max_tokens
        self.max_chars = max_chars
        self._file = tokenizer_file
        self._tokenizer: Tokenizer | None = None  # 100 MB for a big vocabulary: not without need
        if max_tokens is not None:
            self._encode("")

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`."""
        return len(self._encode(text))

    def cut(self, text: str) -> tuple[str, bool]:
        """Return the text within all caps, and whether something of it was cut off.

        What cannot be UTF-8 (lone surrogates) becomes "?".
        """
        # The slice first: nothing below copies 50 MB. A character is at least one byte.
        head = text[: MAX_TEXT_BYTES + 1].encode("utf-8", errors="replace")
        whole = head.decode("utf-8")
        cut = whole
        if len(head) > MAX_TEXT_BYTES:
            kept = head[: MAX_TEXT_BYTES - len(_NOTE)]
            cut = kept.decode("utf-8", errors="ignore") + _NOTE
        if self.max_chars is not None and len(cut) > self.max_chars:
            cut = _with_note(whole[: self.max_chars], keep=self.max_chars - len(_NOTE))
        if self.max_tokens is not None:
            cut = self._cut_to_tokens(cut, self.max_tokens)
        return cut, cut != whole

    def _cut_to_tokens(self, text: str, max_tokens: int) -> str:
        encoding = self._encode(text)
        if len(encoding) <= max_tokens:
            return text
        note = _NOTE if self.count(_NOTE) < max_tokens else ""  # no room for a note in a tiny cap
        keep = max_tokens - self.count(note)
        while True:
            # offsets[keep] is the first token that goes. Where it is a piece of a character, the
            # whole character goes with it.
            shorter = text[: encoding.offsets[keep][0]] + note
            excess = self.count(shorter) - max_tokens
            if excess <= 0:
                return shorter
            # Text and note can make other tokens together than apart.
            keep = max(keep - excess, 0)

    def _encode(self, text: str) -> "Encoding":
        if self._tokenizer is None:
            if self._file is None:
                raise ValueError("tokens cannot be counted without a tokenizer.json")
            self._tokenizer = _load_plain_tokenizer(self._file)
        return self._tokenizer.encode(text, add_special_tokens=False)


class CharacterLimiter:
    """Counts characters where a reader of pages counts tokens: for `max_tool_response_chars`."""

    def __init__(self, max_chars: int | None) -> None:
        self.max_tokens = max_chars

    def count(self, text: str) -> int:
        return len(text)


def _with_note(text: str, *, keep: int) -> str:
    return text[:keep] + _NOTE if keep > 0 else text


def _load_plain_tokenizer(file: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    definition = json.loads(file.read_text(encoding="utf-8"))
    definition["added_tokens"] = []
    # Some files are saved with these; a text truncated while it is counted would pass any cap.
    definition["truncation"] = None
    definition["padding"] = None
    tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(definition))
    return tokenizer
