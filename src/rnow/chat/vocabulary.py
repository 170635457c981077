"""Which text each token id stands for, and whether two models agree on that.

The teacher scores the very ids that the student sampled, so one id that means something else to the
teacher makes every number after it wrong without a sign of it. Read from tokenizer.json alone: no
model is loaded, and transformers is not imported.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rnow.chat.template import ChatTemplate
from rnow.errors import ModelError, TemplateError
from rnow.records import Message
from rnow.tools.base import ToolSchema

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Which of the student's ids can be trained on.

    Vocabulary(num_tokens=151_669, foreign_ids=(151_669, …, 151_935), notices=("…",))
    """

    num_tokens: int  # that student and teacher share; without a teacher, the student's
    foreign_ids: tuple[int, ...]  # of the student's embedding; a rollout ends where one is sampled
    notices: tuple[str, ...]  # one line each, for the user


def read_vocabulary(student: Path, teacher: Path | None = None) -> Vocabulary:
    """Return what the student may write so that the teacher reads the same.

    An embedding often has more rows than the tokenizer has tokens, and not the same number in two
    models; one of two models may know tokens that the other does not. What is in the way of
    training is an id that means one thing here and another there: that is a ModelError.
    """
    known = token_map(student)
    size = max(_embedding_rows(student) or 0, 1 + max(known.values()))
    notices: list[str] = []
    if teacher is not None:
        theirs = token_map(teacher)
        if (conflict := _conflict(known, theirs)) is not None:
            raise ModelError(conflict)
        if alone := sorted(known.keys() - theirs.keys(), key=known.__getitem__):
            notices.append(
                f"the teacher does not know {_listed(alone)} of the student's tokens: a rollout "
                "ends where the student writes one, without it (rollout/end_foreign_token)"
            )
        if unread := sorted(theirs.keys() - known.keys(), key=theirs.__getitem__):
            notices.append(
                f"the student does not know {_listed(unread)} of the teacher's tokens: it never "
                "writes one, and what the teacher would give them counts as disagreement"
            )
        known = {token: id for token, id in known.items() if token in theirs}
    meant = set(known.values())
    foreign = tuple(id for id in range(size) if id not in meant)
    return Vocabulary(num_tokens=len(known), foreign_ids=foreign, notices=tuple(notices))


def check_words(
    chat: ChatTemplate,
    messages: Sequence[Message],
    schemas: Sequence[ToolSchema],
    *,
    vocabulary: Vocabulary,
) -> None:
    """Raise TemplateError if the template itself writes what the teacher cannot read."""
    written = [
        *chat.render_prompt(messages, schemas),
        *(chat.bridge(["text"]) if schemas and chat.calling else ()),
    ]
    foreign = sorted({*written, *chat.stop_token_ids} & set(vocabulary.foreign_ids))
    if foreign:
        names = _listed([chat.decode([id]) or f"id {id}" for id in foreign])
        raise TemplateError(
            f"the student's chat template writes {names}, unknown to the teacher; take two models "
            "with the same tokenizer"
        )


def _conflict(student: Mapping[str, int], teacher: Mapping[str, int]) -> str | None:
    """Return a sentence with the first ids that mean two things; None where none does."""
    token_of = {id: token for token, id in teacher.items()}
    different = [
        token
        for token, id in student.items()
        if teacher.get(token, id) != id or token_of.get(id, token) != token
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


def _embedding_rows(folder: Path) -> int | None:
    """Return how many ids the network in `folder` can write; None where nothing says it."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return size if isinstance(size, int) else None


def _listed(tokens: Sequence[str]) -> str:
    shown = ", ".join(map(repr, tokens[:NUM_DIFFERENCES_SHOWN]))
    return f"{len(tokens)} ({shown}{', …' if len(tokens) > NUM_DIFFERENCES_SHOWN else ''})"


def _ids(token: str, *maps: Mapping[str, int]) -> list[int]:
    return [ids[token] for ids in maps if token in ids]


def _place(token: str, ids: Mapping[str, int], role: str) -> str:
    return f"{ids[token]} in the {role}" if token in ids else f"unknown to the {role}"
