"""Which text each token id stands for, and whether two models agree on that.

The teacher scores the very ids that the student sampled, so one id that means something else to the
teacher makes every number after it wrong without a sign of it. Read from tokenizer.json alone: no
model is loaded, and transformers is not imported.
"""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from rnow.errors import ModelError

NUM_DIFFERENCES_SHOWN = 3


def token_map(folder: Path) -> dict[str, int]:
    """Return token text -> id of the model in `folder`, added tokens included."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json; save it with "
            f"transformers.AutoTokenizer.from_pretrained(…).save_pretrained({str(folder)!r})"
        )
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises plain Exception for every kind of bad file
        raise ModelError(f"{file} cannot be read: {error}") from error
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    return vocabulary


def compare_token_maps(student: Mapping[str, int], teacher: Mapping[str, int]) -> str | None:
    """Return None if both maps are the same, else a sentence with the first differences by id."""
    different = [
        token
        for token in student.keys() | teacher.keys()
        if student.get(token) != teacher.get(token)
    ]
    if not different:
        return None
    different.sort(key=lambda token: (min(_ids(token, student, teacher)), token))
    shown = "; ".join(
        f"{token!r} is {_place(token, student, 'student')} and {_place(token, teacher, 'teacher')}"
        for token in islice(different, NUM_DIFFERENCES_SHOWN)
    )
    more = len(different) - NUM_DIFFERENCES_SHOWN
    return (
        f"student and teacher do not share token ids, {len(different)} differ: {shown}"
        + (f"; and {more} more" if more > 0 else "")
        + ". The teacher scores the student's ids, so take two models with the same tokenizer"
    )


def _ids(token: str, *maps: Mapping[str, int]) -> list[int]:
    return [ids[token] for ids in maps if token in ids]


def _place(token: str, ids: Mapping[str, int], role: str) -> str:
    return f"{ids[token]} in the {role}" if token in ids else f"unknown to the {role}"
