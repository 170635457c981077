from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from rnow.tools.limit import MAX_TEXT_BYTES, TokenLimiter

NOTE = "\n[The rest of this result was cut.]"


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer in Qwen's form, with added tokens of both kinds and traps.

    Merges, strongest first: a + newline, a + a, newline + [. So "aa" is one token and so is the
    beginning of the note, but together they make three.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    newline = "\u010a"  # as byte-level tokenizers write it
    merges = [("a", newline), ("a", "a"), (newline, "[")]
    tokens = [*alphabet, *("".join(merge) for merge in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    end_id = tokenizer.token_to_id("<|im_end|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", end_id)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    file = tmp_path_factory.mktemp("model") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def test_added_tokens_count_as_the_plain_text_that_they_are(tokenizer_file: Path) -> None:
    limiter = TokenLimiter(tokenizer_file, None)
    assert limiter.count("b<|im_end|>") == 11
    assert limiter.count("<tool_call>") == 11
    assert limiter.count("aaaab") == 3
    assert limiter.count("é") == 2
    assert limiter.count("") == 0


def test_a_text_within_the_cap_is_left_alone(tokenizer_file: Path) -> None:
    limiter = TokenLimiter(tokenizer_file, 3)
    assert limiter.cut("aaaab") == ("aaaab", False)
    assert limiter.cut("") == ("", False)


def test_a_cut_text_fills_the_cap_and_ends_with_a_note(tokenizer_file: Path) -> None:
    limiter = TokenLimiter(tokenizer_file, 39)
    assert limiter.count(NOTE) == 34
    assert limiter.cut("b" * 40) == ("b" * 5 + NOTE, True)
    # The third é would need tokens 5 and 6 of 5: it goes as a whole.
    assert limiter.cut("é" * 41) == ("éé" + NOTE, True)


def test_a_text_that_costs_more_beside_the_note_gives_way(tokenizer_file: Path) -> None:
    # 39 tokens less 34 leave 5, but the fifth aa and the note are 36 together: a, a\n, [, the rest.
    limiter = TokenLimiter(tokenizer_file, 39)
    assert limiter.cut("aa" * 41) == ("aa" * 4 + NOTE, True)


def test_a_cap_without_room_for_the_note_is_kept_all_the_same(tokenizer_file: Path) -> None:
    assert TokenLimiter(tokenizer_file, 4).cut("bcdefgh") == ("bcde", True)


@given(text=st.text(), max_tokens=st.integers(1, 60))
def test_whatever_the_text_the_cap_holds_and_a_beginning_is_kept(
    tokenizer_file: Path, text: str, max_tokens: int
) -> None:
    limiter = TokenLimiter(tokenizer_file, max_tokens)
    cut, truncated = limiter.cut(text)
    assert limiter.count(cut) <= max_tokens
    assert text.startswith(cut.removesuffix(NOTE)) or not truncated
    assert truncated == (limiter.count(text) > max_tokens)


def test_1_mb_is_the_end_in_any_case() -> None:
    limiter = TokenLimiter(None, None)
    assert limiter.cut("x" * MAX_TEXT_BYTES) == ("x" * MAX_TEXT_BYTES, False)
    text, truncated = limiter.cut("é" * 1_000_000)
    assert truncated is True
    assert text == "é" * ((MAX_TEXT_BYTES - len(NOTE)) // 2) + NOTE


def test_characters_can_be_capped_too(tokenizer_file: Path) -> None:
    limiter = TokenLimiter(None, None, max_chars=50)
    assert limiter.cut("x" * 50) == ("x" * 50, False)
    assert limiter.cut("x" * 51) == ("x" * 15 + NOTE, True)
    assert TokenLimiter(None, None, max_chars=4).cut("bcdefgh") == ("bcde", True)
    both = TokenLimiter(tokenizer_file, 39, max_chars=60)
    assert both.cut("x" * 100) == ("x" * 5 + NOTE, True)


def test_what_is_no_text_becomes_a_question_mark() -> None:
    assert TokenLimiter(None, None).cut("a\ud800b") == ("a?b", False)


def test_tokens_cannot_be_counted_without_a_tokenizer() -> None:
    with pytest.raises(ValueError, match=r"a cap of 5 tokens needs a tokenizer.json to count with"):
        TokenLimiter(None, 5)
    with pytest.raises(ValueError, match=r"tokens cannot be counted without a tokenizer.json"):
        TokenLimiter(None, None).count("a")
