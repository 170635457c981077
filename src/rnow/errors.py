"""What can go wrong, as types.

    RnowError                     exit code 1 unless said otherwise
    ├── UsageError                2   the command line was wrong
    ├── ConfigError(ValueError)       config.yml
    ├── DataError(ValueError)         train.jsonl, val.jsonl
    ├── StoreError                    a page store that cannot be read or written
    ├── ToolDefinitionError(TypeError)  tools.py or rewards.py cannot be used
    ├── TemplateError                 a chat template that breaks the token ledger's promises
    ├── ModelError                    a model folder that cannot be loaded or trained
    ├── EngineError                   an engine could not sample, score or load weights
    ├── ServerError                   a server that rnow started ended too often to go on
    ├── ClusterError                  machines that cannot be joined or are not alike
    ├── TeacherError                  the teacher is unfit, or too much could not be scored
    ├── RolloutError                  too many rollouts failed
    ├── GradingError                  a grader could not say whether an answer is right
    ├── CheckpointError               a run directory that cannot be used or resumed
    ├── RankError                     processes of the trainer ended too often to go on
    ├── OutOfMemoryError              an update that a device has no memory for
    ├── SpaceError                    a disk that is full
    ├── PublicationError          4   the engine does not hold the trainer's weights
    ├── BadNumbersError           4   non-finite loss or gradient, three times in a row
    ├── RanksDifferError          4   processes of the trainer hold different weights
    ├── DeadlineError             3   something waited longer than its limit
    └── Interrupted                   not an error: asked to stop by Ctrl-C (130), SIGTERM (143),
                                      or trainer.max_time_s (0)

To add one: subclass, draw it here, give it the exit code that a shell script should see, what it is
`about`, and the `remedy` that docs/messages.md shows where a message names none. A message says
what is wrong, the value, where, and what to do; the command line prints it, no traceback. Errors of
the user's files carry their `problems` one by one, for `rnow check --json`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal


class RnowError(Exception):
    """Base of everything that rnow raises on purpose; `exit_code` is what the process ends with."""

    exit_code: int = 1
    about: str = ""
    remedy: str = ""


class UsageError(RnowError):
    exit_code = 2
    about = "the command line"
    remedy = "see rnow COMMAND --help"


_MAX_LINES_NAMED = 5

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, or worth a word, in a file of the user's.

    str(Problem(file="config.yml", line=12, key="seed", message="seed is -1; …"))
    == "config.yml:12: seed is -1; …"
    """

    file: str  # path as the user gave it, or "override KEY=VALUE"
    line: int | None  # from 1; None where the file as a whole is meant
    key: str | None  # dotted path of the setting or field, "messages.0.content"
    message: str  # a sentence that says what is wrong and what to do
    severity: Severity = "error"

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"


def folded(problems: Iterable[Problem]) -> list[Problem]:
    """Return those that several lines of a file have alike as one, at its first line, with all."""
    alike: dict[Problem, list[int | None]] = {}
    for problem in problems:
        alike.setdefault(replace(problem, line=None), []).append(problem.line)
    return [
        replace(problem, line=lines[0], message=f"{problem.message}{_in_lines(lines)}")
        for problem, lines in alike.items()
    ]


def _in_lines(lines: Sequence[int | None]) -> str:
    if len(lines) == 1:
        return ""
    first = ", ".join(str(line) for line in lines[:_MAX_LINES_NAMED])
    more = ", …" if len(lines) > _MAX_LINES_NAMED else ""
    return f" (so in {len(lines)} lines: {first}{more})"


class ConfigError(RnowError, ValueError):
    """Made from a sentence, or from problems: then the message has one line for each."""

    about = "config.yml"
    remedy = "correct the named line; all keys: docs/configuration.md"

    def __init__(self, message: str = "", *, problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__(message or "\n".join(str(problem) for problem in self.problems))


class DataError(RnowError, ValueError):
    """Made as a ConfigError is."""

    about = "train.jsonl, val.jsonl"
    remedy = "correct the named line; what a line may hold: docs/data.md"

    def __init__(self, message: str = "", *, problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__(message or "\n".join(str(problem) for problem in self.problems))


class StoreError(RnowError):
    about = "the store of pages"
    remedy = "give it room and a folder of its own, or build it again with rnow corpus build"


class ToolDefinitionError(RnowError, TypeError):
    about = "tools.py, rewards.py"
    remedy = "correct the named line; docs/tools.md shows what a tool is"


class TemplateError(RnowError):
    about = "the chat template"
    remedy = "give the model another chat_template.jinja, or take another model: docs/models.md"


class ModelError(RnowError):
    about = "a model's folder"
    remedy = "download it again whole, or name another in model.path or teacher.path"


class EngineError(RnowError):
    about = "what samples and scores"
    remedy = "read logs/ in the run's folder, then start the same command again: it goes on"


class ServerError(RnowError):
    """Not an EngineError: no single rollout is to blame, and none is to be tried again."""

    about = "a server that rnow started"
    remedy = "read its log in logs/, mend what it says, start again: the run goes on"


class ClusterError(RnowError):
    about = "several machines"
    remedy = "make the named machines alike and reachable: docs/cluster.md"


class TeacherError(RnowError):
    about = "the teacher"
    remedy = "compare its tokenizer and template with the student's, or take another"


class RolloutError(RnowError):
    about = "too many lost rollouts"
    remedy = "controller.log names each; mend the commonest, then start again: the run goes on"


class GradingError(RnowError):
    about = "a grader of rewards.py"
    remedy = "mend the named grader, and try it with rnow test"


class CheckpointError(RnowError):
    about = "a run's folder"
    remedy = "put back what was changed, or begin anew with --fresh"


class RankError(RnowError):
    about = "processes of the trainer"
    remedy = "read logs/ in the run's folder, then start again: the run goes on"


class OutOfMemoryError(RnowError):
    about = "memory of an update"
    remedy = "lower trainer.max_tokens_per_micro_batch or rollout.max_context_window"


class SpaceError(RnowError):
    about = "a full disk"
    remedy = "make room, then start again: the run goes on"


class PublicationError(RnowError):
    about = "weights that did not arrive"
    remedy = "compare model.dtype and engine.dtype"
    exit_code = 4


class BadNumbersError(RnowError):
    about = "loss or gradient that is no number"
    remedy = "lower trainer.learning_rate, or set model.dtype: float32"
    exit_code = 4


class RanksDifferError(RnowError):
    about = "processes with different weights"
    remedy = "start again: the run goes on from its last checkpoint"
    exit_code = 4


class DeadlineError(RnowError):
    about = "something that took too long"
    remedy = "look at what is named; a limit of the settings can be raised"
    exit_code = 3


class Interrupted(RnowError):
    """The run was asked to stop and has; what was done by then is saved."""

    about = "no error: the run was asked to stop"
    remedy = "the same command goes on"

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
