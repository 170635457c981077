"""Do student and teacher read a conversation in the same words? Compares their chat templates.

The student's template makes every id that the teacher scores, so a teacher with another one is
asked about a text that it would have written otherwise: its log-probabilities fall for reasons that
have nothing to do with the student. That is allowed, and said.
"""

import json
from itertools import zip_longest
from pathlib import Path

_SHOWN = 80  # characters around the first that differs


def template_difference(student: Path, teacher: Path) -> str | None:
    """Return a sentence with the first line that differs; None if there is none to tell of."""
    texts = [_template_of(folder) for folder in (student, teacher)]
    if None in texts:
        # A base model as teacher often has no template; there is nothing to compare then.
        return None
    lines = [str(text).strip().splitlines() for text in texts]
    for number, (ours, theirs) in enumerate(zip_longest(*lines), start=1):
        if ours != theirs:
            pairs = enumerate(zip_longest(ours or "", theirs or ""))
            start = max(0, next(at for at, (a, b) in pairs if a != b) - _SHOWN // 2)
            return (
                "the teacher's chat template is not the student's; the student's is used for both. "
                f"Line {number} is {_show(ours, start)} in the student's, "
                f"{_show(theirs, start)} in the teacher's"
            )
    return None


def _show(line: str | None, start: int) -> str:
    return "missing" if line is None else repr(line[start:].strip()[:_SHOWN])


def _template_of(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    template = config.get("chat_template")
    return template if isinstance(template, str) else None
