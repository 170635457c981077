"""Which text each token id stands for, and whether two models agree on that.

The teacher scores the very ids that the student sampled, so one id that means something else to the
teacher makes every number after it wrong without a sign of it. Read from tokenizer.json alone: no
model is loaded, and transformers is not imported.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rnow.chat.calls.probe import QUESTION
from rnow.chat.template import ChatTemplate
from rnow.errors import ModelError, TemplateError
from rnow.records import Prompt
from rnow.tools.base import ToolSchema, allowed_schemas

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

    Vocabulary(num_tokens=151_669, foreign_ids=(151_669, …, 151_935), unread={}, notices=("…",))
    """

    num_tokens: int  # that student and teacher share; without a teacher, the student's
    foreign_ids: tuple[int, ...]  # of the student's embedding; a rollout ends where one is sampled
    unread: Mapping[int, str]  # tokens that no text may hold, and why: a model cannot read them
    notices: tuple[str, ...]  # one line each, for the user


def read_vocabulary(student: Path, teacher: Path | None = None) -> Vocabulary:
    """Return what the student may write so that the teacher reads the same.

    An embedding often has more rows than the tokenizer has tokens, and not the same number in two
    models; one of two models may know tokens that the other does not. What is in the way of
    training is an id that means one thing here and another there: that is a ModelError.
    """
    all_known = token_map(student)
    known, num_rows = _with_rows(all_known, student)
    notices: list[str] = []
    unread = dict.fromkeys(
        sorted({*all_known.values()} - {*known.values()}),
        f"for which the student's network has no row (vocab_size is {num_rows})",
    )
    if teacher is not None:
        all_theirs = token_map(teacher)
        if (conflict := _conflict(all_known, all_theirs)) is not None:
            raise ModelError(conflict)
        theirs, num_theirs = _with_rows(all_theirs, teacher)
        if alone := sorted(known.keys() - theirs.keys(), key=known.__getitem__):
            notices.append(
                f"the teacher does not know {_listed(alone)} of the student's tokens: a rollout "
                "ends where the student writes one, without it (rollout/end_foreign_token)"
            )
        if more := sorted(theirs.keys() - known.keys(), key=theirs.__getitem__):
            notices.append(
                f"the student does not know {_listed(more)} of the teacher's tokens: it never "
                "writes one, and what the teacher would give them counts as disagreement"
            )
        for token in alone:
            unread[known.pop(token)] = (
                f"for which the teacher's network has no row (vocab_size is {num_theirs})"
                if token in all_theirs
                else "unknown to the teacher"
            )
    meant = set(known.values())
    foreign = tuple(id for id in range(num_rows) if id not in meant)
    return Vocabulary(
        num_tokens=len(known), foreign_ids=foreign, unread=unread, notices=tuple(notices)
    )


def check_words(
    chat: ChatTemplate, schemas: Sequence[ToolSchema], *, vocabulary: Vocabulary
) -> None:
    """Raise TemplateError if the template itself writes what one of the models cannot read."""
    written = {
        *chat.render_prompt([QUESTION], schemas),
        *(chat.bridge(["text"]) if schemas and chat.calling else ()),
        *chat.stop_token_ids,
    }
    if unread := _unread(chat, written, vocabulary):
        raise TemplateError(
            f"the student's chat template writes {unread}; take two models with the same tokenizer"
        )


def check_prompts(
    chat: ChatTemplate,
    prompts: Sequence[Prompt],
    schemas: Sequence[ToolSchema],
    *,
    vocabulary: Vocabulary | None,
    file: str,
) -> None:
    """Raise TemplateError, with the line, for a prompt that the template or a model cannot read.

    One prompt of each order of roles is rendered; all, where there are tokens that cannot be read.
    """
    kinds = {tuple((m["role"], "tool_calls" in m) for m in p.messages): p for p in prompts[::-1]}
    has_unread = vocabulary is not None and vocabulary.unread
    for prompt in prompts if has_unread else kinds.values():
        where = f"the prompt of {file}:{prompt.line}"
        try:
            ids = chat.render_prompt(prompt.messages, allowed_schemas(schemas, prompt.tools))
        except TemplateError as error:
            raise TemplateError(f"{where}: {error}") from error
        if vocabulary is not None and (unread := _unread(chat, ids, vocabulary)):
            raise TemplateError(
                f"{where} holds {unread}; write it otherwise, or take two models with the same "
                "tokenizer"
            )


def _unread(chat: ChatTemplate, ids: Iterable[int], vocabulary: Vocabulary) -> str:
    """Name those of `ids` that a model cannot read, and why; "" where there is none."""
    found = sorted(set(ids) & vocabulary.unread.keys())
    if not found:
        return ""
    reason = vocabulary.unread[found[0]]
    alike = [id for id in found if vocabulary.unread[id] == reason]
    return f"{_listed([chat.decode([id]) or f'id {id}' for id in alike])}, {reason}"


def _with_rows(known: Mapping[str, int], folder: Path) -> tuple[dict[str, int], int]:
    """Return the tokens that the network in `folder` can read, and how many rows it has."""
    num_rows = _embedding_rows(folder) or 1 + max(known.values())
    return {token: id for token, id in known.items() if id < num_rows}, num_rows


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
