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

To add one: subclass, draw it here, give it the exit code that a shell script should see. A message
says what is wrong, the value, where, and what to do; the command line prints it, no traceback.
Errors of the user's files carry their `problems` one by one, for `rnow check --json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


class RnowError(Exception):
    """Base of everything that rnow raises on purpose; `exit_code` is what the process ends with."""

    exit_code: int = 1


class UsageError(RnowError):
    exit_code = 2


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


class ConfigError(RnowError, ValueError):
    """Made from a sentence, or from problems: then the message has one line for each."""

    def __init__(self, message: str = "", *, problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__(message or "\n".join(str(problem) for problem in self.problems))


class DataError(RnowError, ValueError):
    """Made as a ConfigError is."""

    def __init__(self, message: str = "", *, problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__(message or "\n".join(str(problem) for problem in self.problems))


class StoreError(RnowError):
    pass


class ToolDefinitionError(RnowError, TypeError):
    pass


class TemplateError(RnowError):
    pass


class ModelError(RnowError):
    pass


class EngineError(RnowError):
    pass


class ServerError(RnowError):
    """Not an EngineError: no single rollout is to blame, and none is to be tried again."""


class ClusterError(RnowError):
    pass


class TeacherError(RnowError):
    pass


class RolloutError(RnowError):
    pass


class GradingError(RnowError):
    pass


class CheckpointError(RnowError):
    pass


class RankError(RnowError):
    pass


class OutOfMemoryError(RnowError):
    pass


class SpaceError(RnowError):
    pass


class PublicationError(RnowError):
    exit_code = 4


class BadNumbersError(RnowError):
    exit_code = 4


class RanksDifferError(RnowError):
    exit_code = 4


class DeadlineError(RnowError):
    exit_code = 3


class Interrupted(RnowError):
    """The run was asked to stop and has; what was done by then is saved."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
