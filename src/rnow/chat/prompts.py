"""train.jsonl -> prompts.

One JSON object a line; lines are counted as an editor counts them. Every line is checked before the
first error is shown. Content that comes as a list of text parts is joined into one text here, since
chat templates of text models print nothing for a list.

Knows no tokenizer: whether a prompt fits the window is found out by the chat template's check.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from rnow.chat.prompt_forms import foreign_entry, foreign_form
from rnow.chat.prompt_line import EntryReader, last_answer, without_last_answer
from rnow.config.types import DatasetType
from rnow.errors import DataError, Problem, Severity, folded
from rnow.records import Prompt

_MAX_PROBLEMS_SHOWN = 20
_WRITERS = ("convert_dataset.py", "make_site.py")  # what in a project may write its prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFile:
    """The prompts of one file, with what its writer should know."""

    prompts: tuple[Prompt, ...]
    warnings: tuple[Problem, ...]

    @property
    def notices(self) -> tuple[str, ...]:
        return tuple(str(warning) for warning in self.warnings)


def read_prompt_file(
    file: Path,
    *,
    dataset_type: DatasetType,
    drop_last_answer: bool,
    tool_names: Collection[str] | None = None,
    batch_size: int | None = None,
) -> PromptFile:
    """Read and check every line of `file`.

    `drop_last_answer`: what the assistant says at an entry's end is left out, else it is an error;
    in dataset_type sft it is what is learnt.

    `tool_names` are the tools of tools.py: empty where there is none, None where they are not known
    (then names are not checked). With `batch_size`, fewer prompts than that are an error.
    Raises DataError with all problems of the file.
    """
    data = _read_bytes(file)
    form = foreign_form(data, file.name)
    if form is not None:
        raise _error([_of_file(file, form)])
    problems: list[Problem] = []
    unknown: list[Problem] = []
    prompts: list[Prompt] = []
    container_keys: Counter[str] = Counter()
    for line, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        reader = EntryReader(str(file), line, dataset_type, tool_names, problems)
        entry = reader.parse(raw)
        if entry is None:
            continue
        foreign = None if dataset_type == "midtrain" else foreign_entry(entry)
        if foreign is not None:
            problems.append(_of_file(file, foreign, line=line, key="messages"))
            continue
        container_keys.update(reader.container_keys(entry))
        unknown += [
            _of_file(file, text, line=line, key=key, severity="warning")
            for key, text in reader.misspelt(entry)
        ]
        if drop_last_answer and dataset_type != "sft":
            entry = without_last_answer(entry)
        prompt = reader.prompt(entry, index=len(prompts))
        if prompt is None:
            continue
        wrong = None if dataset_type == "sft" else last_answer(prompt.messages)
        if wrong is not None:
            problems.append(_of_file(file, wrong, line=line, key="messages"))
        prompts.append(prompt)
    if problems:
        raise _error(folded(problems))
    _check_number(file, len(prompts), batch_size)
    warnings = (*_container_warning(file, container_keys), *folded(unknown))
    return PromptFile(prompts=tuple(prompts), warnings=warnings)


def asked(prompt: Prompt) -> Prompt:
    """Leave out what stands behind the last message that is no answer of a model or a tool."""
    messages = prompt.messages
    ends = [i for i, one in enumerate(messages) if one["role"] not in ("assistant", "tool")]
    return replace(prompt, messages=messages[: ends[-1] + 1]) if ends else prompt


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError as error:
        raise _error([_of_file(file, f"file not found; {_how_to_fill(file)}")]) from error
    except OSError as error:
        raise _error([_of_file(file, f"cannot be read: {error.strerror}")]) from error


def _check_number(file: Path, num_prompts: int, batch_size: int | None) -> None:
    if num_prompts == 0:
        message = f"File contains no valid JSON lines; {_how_to_fill(file)}"
        raise _error([_of_file(file, message)])
    if batch_size is not None and num_prompts < batch_size:
        message = (
            f"batch_size ({batch_size}) exceeds training samples ({num_prompts}); "
            f"set data.batch_size to {num_prompts} or less, or {_how_to_fill(file)}"
        )
        raise _error([_of_file(file, message)])


def _of_file(
    file: Path,
    message: str,
    *,
    line: int | None = None,
    key: str | None = None,
    severity: Severity = "error",
) -> Problem:
    return Problem(file=str(file), line=line, key=key, message=message, severity=severity)


def _how_to_fill(file: Path) -> str:
    for name in _WRITERS:
        script = file.parent / name
        if script.is_file() and file.name in script.read_text("utf-8", "replace"):
            place = "" if file.parent == Path() else f"cd {file.parent} && "
            return f"{place}python {name} writes it"
    return "write one JSON object with messages a line"


def _container_warning(file: Path, keys: Counter[str]) -> tuple[Problem, ...]:
    if not keys:
        return ()
    counts = ", ".join(f"{key} in {keys[key]}" for key in sorted(keys))
    message = (
        f"entries ask for a container ({counts}), which is ignored: "
        "tools run in processes of this machine"
    )
    return (Problem(file=str(file), line=None, key=min(keys), message=message, severity="warning"),)


def _error(problems: list[Problem]) -> DataError:
    shown = [str(problem) for problem in problems[:_MAX_PROBLEMS_SHOWN]]
    if len(problems) > len(shown):
        shown.append(f"… and {len(problems) - len(shown)} more problems in {problems[0].file}")
    return DataError("\n".join(shown), problems=problems)
