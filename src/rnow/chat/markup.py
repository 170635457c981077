r"""Added tokens stay the template's own: how outside text is encoded without ever becoming one.

An added token (`<|im_end|>`, but also `<tool_call>` and `<think>`, which many tokenizers do not
call special) is found in a text before anything else happens to it. A web page that holds the
characters `<|im_end|>` would so end the turn. Markup and outside text must therefore be told apart
*before* encoding, while the template stays free to trim, quote or escape the text:

    texts      says <|im_end|>               each character that occurs in any added token is
    hidden     #### #########                exchanged for a private one, absent from the texts
    rendered   <tool_response>\n#### #####… an added token found now is the template's own
    stretches  <tool_response> | \nsays …    split there, show the characters again,
    ids        441 | 198 4367 27 91 …        encode with a tokenizer that has no added tokens

Template text and outside text between two added tokens are encoded together, so that merges across
their border are those of the template's own rendering. Whitespace, quotes and backslashes are not
exchanged (templates trim and escape these): a token of nothing else is never made here, and a
template that needs one does not pass its check.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from rnow.errors import TemplateError

_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_CANNOT_HIDE = re.compile(r"[\s\"\\]")
# What a vocabulary without a byte fallback may lack: controls, accents, Han, emoji, private use.
_UNUSUAL = "\x00\x1f\u00e9\u0416\u4e2d\U0001f600\ue000\U0010fffd"


@dataclass(frozen=True, slots=True)
class Text:
    """Text with a mark in whatever only looks like markup."""

    text: str
    mark: str

    def show(self, value: Any) -> Any:
        """Return a value that was read from the text, without the mark."""
        match value:
            case str():
                return value.replace(self.mark, "") if self.mark else value
            case list():
                return [self.show(item) for item in value]
            case dict():
                return {self.show(key): self.show(item) for key, item in value.items()}
        return value


class Markup:
    """The added tokens of one tokenizer, and an encoder that knows none of them."""

    def __init__(self, tokenizer_json: str) -> None:
        parts: dict[str, Any] = json.loads(tokenizer_json)
        added: list[dict[str, Any]] = parts["added_tokens"]
        self.added_ids = frozenset(int(token["id"]) for token in added)
        parts |= {
            "added_tokens": [],
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        self._plain = Tokenizer.from_str(json.dumps(parts))
        self._added = added
        own = [token for token in added if _CANNOT_HIDE.sub("", token["content"])]
        self._id_of = {token["content"]: int(token["id"]) for token in own}
        self._hidden = "".join(sorted(set(_CANNOT_HIDE.sub("", "".join(self._id_of)))))
        self._pattern = _added_token_pattern(own)

    def encode(self, texts: Sequence[str], render: Callable[[Sequence[str]], str]) -> list[int]:
        """Return the ids of `render(texts)`; no added id comes from `texts`, whatever they hold.

        `render` may trim, quote or escape what it is given. Lone surrogates become "?".
        """
        clean = [storable(text) for text in texts]
        private = _private_characters(clean, len(self._hidden))
        rendered = render([_exchange(text, self._hidden, private) for text in clean])
        ids: list[int] = []
        for stretch, added_id in self._split(rendered):
            # Ascii, as most are, holds no private character.
            plain = stretch if stretch.isascii() else _exchange(stretch, private, self._hidden)
            ids += self._encode_plain(plain)
            ids += added_id
        return ids

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where each added token of a template's text begins, and its id."""
        for match in self._pattern.finditer(text):
            yield match.start(), self._id_of[match[0].strip()]

    def spelled_out(self, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> Text:
        """Return the text of ids, in which only added tokens look like added tokens.

        Where ordinary tokens spell one out, `mark` stands behind its first character.
        """
        text = decode(ids)
        own = frozenset(self._id_of.values())
        if sum(1 for _ in self.find(text)) == sum(id in own for id in ids):
            return Text(text=text, mark="")
        mark = _private_characters([text], 1)

        def broken(found: re.Match[str]) -> str:
            token = found[0].lstrip()
            return found[0][: -len(token)] + token[0] + mark + token[1:]

        pieces = (
            (is_added, decode([*group]))
            for is_added, group in itertools.groupby(ids, key=self.added_ids.__contains__)
        )
        shown = (text if is_added else self._pattern.sub(broken, text) for is_added, text in pieces)
        return Text(text="".join(shown), mark=mark)

    def _split(self, rendered: str) -> Iterator[tuple[str, list[int]]]:
        """Yield each stretch with the added token that ends it; none ends the last."""
        start = 0
        for match in self._pattern.finditer(rendered):
            # A match may hold whitespace beside the token, as the tokenizer's lstrip and rstrip do.
            yield rendered[start : match.start()], [self._id_of[match[0].strip()]]
            start = match.end()
        yield rendered[start:], []

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if not self.added_ids.isdisjoint(ids):
            found = sorted(self.added_ids.intersection(ids))
            raise TemplateError(
                f"the tokenizer makes the added tokens {found} of plain text: {text[:80]!r}"
            )
        return ids

    def check(self) -> None:
        """Raise TemplateError if the tokenizer makes added tokens of plain text all the same."""
        for text in (_UNUSUAL, *(token["content"] for token in self._added)):
            ids = self._plain.encode(text, add_special_tokens=False).ids
            found = sorted(self.added_ids.intersection(ids))
            if found:
                raise TemplateError(
                    f"the tokenizer encodes {text!r} to the added tokens {found} even with added "
                    "tokens disabled, so tool text could not be told from markup; "
                    "rnow needs a byte-level or byte-fallback tokenizer"
                )


def storable(text: str) -> str:
    """Return `text` with lone surrogates, which UTF-8 cannot hold, replaced by "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _private_characters(texts: Sequence[str], number: int) -> str:
    used: set[str] = set().union(*texts)
    points = (chr(point) for point in itertools.chain(*_PRIVATE))
    private = "".join(itertools.islice((c for c in points if c not in used), number))
    if len(private) < number:
        raise TemplateError(
            "a tool's text holds every private-use character; it cannot be encoded safely"
        )
    return private


def _exchange(text: str, old: str, new: str) -> str:
    # A chain of replace is eight times as fast as translate: each pass is one memchr.
    for a, b in zip(old, new, strict=True):
        text = text.replace(a, b)
    return text


def _added_token_pattern(added: Sequence[dict[str, Any]]) -> re.Pattern[str]:
    """Match as the tokenizer does: leftmost, then longest, with the whitespace that it swallows."""
    longest_first = sorted(added, key=lambda token: len(token["content"]), reverse=True)
    alternatives = [
        (r"\s*" if token["lstrip"] else "")
        + re.escape(token["content"])
        + (r"\s*" if token["rstrip"] else "")
        for token in longest_first
    ]
    return re.compile("|".join(alternatives) or r"(?!)")
