import json
from collections.abc import Callable, Sequence

import pytest
from builders import tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from rnow.chat.markup import Markup, storable
from rnow.errors import TemplateError


def tokenizer_with(*added: AddedToken) -> Tokenizer:
    # A copy: the tiny tokenizer is shared by all tests.
    tokenizer = Tokenizer.from_str(tiny_tokenizer((), ()).to_str())
    tokenizer.add_tokens(list(added))
    return tokenizer


def added(text: str, **flags: bool) -> AddedToken:
    return AddedToken(text, normalized=False, **flags)


def between(opening: str, closing: str) -> Callable[[Sequence[str]], str]:
    return lambda texts: opening + "|".join(texts) + closing


@pytest.mark.parametrize(
    "tokens",
    [
        [added("<a>"), added("<a><b>")],  # the longest wins
        [added("<a>", rstrip=True)],
        [added("<a>", lstrip=True, rstrip=True)],
    ],
    ids=["longest", "rstrip", "both"],
)
@pytest.mark.parametrize("text", ["plain", "  padded ", "\n", ""])
def test_the_templates_tokens_are_found_as_the_tokenizer_finds_them(
    tokens: list[AddedToken], text: str
) -> None:
    tokenizer = tokenizer_with(*tokens)
    render = between("x \n<a><b> \n", "\n <a> y")
    own = tokenizer.encode(render([text]), add_special_tokens=False).ids
    assert Markup(tokenizer.to_str()).encode([text], render) == own


def test_a_token_cannot_be_completed_across_the_border_of_template_and_text() -> None:
    markup = Markup(tokenizer_with(added("<end>")).to_str())
    for opening, text, closing in [("<", "end>", ""), ("", "<end", ">"), ("<e", "n", "d>")]:
        ids = markup.encode([text], between(opening, closing))
        assert markup.added_ids.isdisjoint(ids)


def test_tokens_of_whitespace_are_never_made() -> None:
    tokenizer = tokenizer_with(added("    "), added("<end>"))
    markup = Markup(tokenizer.to_str())
    four_spaces, end = (tokenizer.token_to_id(text) for text in ("    ", "<end>"))
    ids = markup.encode(["a    b"], between("    ", "<end>"))
    assert four_spaces not in ids
    assert ids[-1] == end


def test_text_may_be_escaped_by_the_template() -> None:
    tokenizer = tokenizer_with(added("<end>"))
    markup = Markup(tokenizer.to_str())
    ids = markup.encode(
        ['say "<end>" \\ é'], lambda texts: json.dumps(texts[0], ensure_ascii=False) + "<end>"
    )
    assert tokenizer.decode(ids, skip_special_tokens=False) == '"say \\"<end>\\" \\\\ é"<end>'
    assert ids.count(tokenizer.token_to_id("<end>")) == 1


def test_private_characters_of_the_text_survive() -> None:
    markup = Markup(tokenizer_with(added("<end>")).to_str())
    text = "\ue000\ue001\ue002<end>\ue003"
    ids = markup.encode([text], between("", ""))
    assert tiny_tokenizer((), ()).decode(ids) == text


def test_lone_surrogates_become_question_marks() -> None:
    assert storable("a\ud800b\U0001f642") == "a?b\U0001f642"


def test_a_tokenizer_that_has_no_id_for_some_characters_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"<unk>": 0, "a": 1}, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>"])
    with pytest.raises(TemplateError) as caught:
        Markup(tokenizer.to_str()).check()
    assert str(caught.value) == (
        "the tokenizer encodes '\\x00\\x1f\u00e9\u0416\u4e2d\U0001f600\\ue000\\U0010fffd' "
        "to the added tokens [0] even with added tokens disabled, so tool text could not be told "
        "from markup; rnow needs a byte-level or byte-fallback tokenizer"
    )
