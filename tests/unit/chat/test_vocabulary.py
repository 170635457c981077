import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from rnow.chat.vocabulary import Vocabulary, read_vocabulary, token_map
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


def model(folder: Path, vocabulary: dict[str, int], *added: str, rows: int | None = None) -> Path:
    save_tokenizer(folder, vocabulary, [*added])
    if rows is not None:
        (folder / "config.json").write_text(json.dumps({"vocab_size": rows}))
    return folder


def test_rows_without_a_token_are_foreign(tmp_path: Path) -> None:
    student = model(tmp_path / "student", {"a": 0, "b": 1, "d": 3}, rows=6)
    assert read_vocabulary(student) == Vocabulary(num_tokens=3, foreign_ids=(2, 4, 5), notices=())


def test_paddings_of_two_sizes_are_no_difference(tmp_path: Path) -> None:
    student = model(tmp_path / "student", {"a": 0, "b": 1}, rows=6)
    teacher = model(tmp_path / "teacher", {"a": 0, "b": 1}, rows=3)
    shared = Vocabulary(num_tokens=2, foreign_ids=(2, 3, 4, 5), notices=())
    assert read_vocabulary(student, teacher) == shared
    assert read_vocabulary(teacher, student) == Vocabulary(
        num_tokens=2, foreign_ids=(2,), notices=()
    )


def test_tokens_that_only_the_teacher_has_are_said(tmp_path: Path) -> None:
    student = model(tmp_path / "student", {"a": 0, "b": 1}, rows=4)
    teacher = model(tmp_path / "teacher", {"a": 0, "b": 1}, "<think>", rows=4)
    assert read_vocabulary(student, teacher) == Vocabulary(
        num_tokens=2,
        foreign_ids=(2, 3),
        notices=(
            "the student does not know 1 ('<think>') of the teacher's tokens: it never writes one, "
            "and what the teacher would give them counts as disagreement",
        ),
    )


def test_tokens_that_only_the_student_has_end_a_rollout(tmp_path: Path) -> None:
    student = model(tmp_path / "student", {"a": 0, "b": 1}, "<w>", "<x>", "<y>", "<z>")
    teacher = model(tmp_path / "teacher", {"a": 0, "b": 1})
    assert read_vocabulary(student, teacher) == Vocabulary(
        num_tokens=2,
        foreign_ids=(2, 3, 4, 5),
        notices=(
            "the teacher does not know 4 ('<w>', '<x>', '<y>', …) of the student's tokens: a "
            "rollout ends where the student writes one, without it (rollout/end_foreign_token)",
        ),
    )


def test_ids_that_mean_two_things_are_refused_in_their_order(tmp_path: Path) -> None:
    student = model(tmp_path / "student", {"same": 0, "b": 1, "c": 2, "d\n": 3, "e": 4})
    teacher = model(tmp_path / "teacher", {"same": 0, "b": 2, "c": 1, "f": 4, "d\n": 5})
    with pytest.raises(ModelError) as caught:
        read_vocabulary(student, teacher)
    assert str(caught.value) == (
        "student and teacher do not share token ids, 4 differ: 'b' is 1 in the student and 2 in "
        "the teacher; 'c' is 2 in the student and 1 in the teacher; 'd\\n' is 3 in the student "
        "and 5 in the teacher; and 1 more. The teacher scores the student's ids, so take two "
        "models with the same tokenizer"
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
