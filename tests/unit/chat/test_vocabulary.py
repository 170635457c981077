from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from rnow.chat.vocabulary import compare_token_maps, token_map
from rnow.errors import ModelError


def save_tokenizer(folder: Path, vocabulary: dict[str, int], added: list[str]) -> Path:
    folder.mkdir()
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="a"))
    tokenizer.add_tokens([AddedToken(text, special=False) for text in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_added_tokens_are_part_of_the_map(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "model", {"a": 0, "b": 1}, ["<tool_call>"])
    assert token_map(folder) == {"a": 0, "b": 1, "<tool_call>": 2}


def test_equal_maps_give_no_sentence() -> None:
    assert compare_token_maps({"a": 0, "b": 1}, {"b": 1, "a": 0}) is None


def test_the_first_differences_are_named_in_the_order_of_their_ids() -> None:
    student = {"same": 0, "b": 1, "c": 2, "<think>": 9, "d\n": 3}
    teacher = {"same": 0, "b": 2, "c": 1, "e": 4, "d\n": 5}
    assert compare_token_maps(student, teacher) == (
        "student and teacher do not share token ids, 5 differ: 'b' is 1 in the student and 2 in "
        "the teacher; 'c' is 2 in the student and 1 in the teacher; 'd\\n' is 3 in the student and "
        "5 in the teacher; and 2 more. The teacher scores the student's ids, so take two models "
        "with the "
        "same tokenizer"
    )


def test_a_token_that_only_one_side_has_is_a_difference() -> None:
    assert compare_token_maps({"a": 0}, {"a": 0, "<think>": 1}) == (
        "student and teacher do not share token ids, 1 differ: '<think>' is unknown to the student "
        "and 1 in the teacher. The teacher scores the student's ids, so take two models with the "
        "same tokenizer"
    )


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        token_map(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no tokenizer.json; save it with "
        f"transformers.AutoTokenizer.from_pretrained(…).save_pretrained('{tmp_path}')"
    )


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError) as caught:
        token_map(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'tokenizer.json'} cannot be read: ")
