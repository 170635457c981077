"""What can go wrong, as types.

    RnowError                     exit code 1 unless said otherwise
    ├── UsageError                2   the command line was wrong
    ├── ConfigError(ValueError)       config.yml
    ├── DataError(ValueError)         train.jsonl, val.jsonl
    ├── ToolDefinitionError(TypeError)  tools.py cannot be used
    ├── TemplateError                 a chat template that breaks the token ledger's promises
    ├── ModelError                    a model folder that cannot be loaded or trained
    ├── EngineError                   an engine could not sample, score or load weights
    ├── TeacherError                  the teacher is unfit, or too much could not be scored
    ├── RolloutError                  too many rollouts failed
    ├── CheckpointError               a run directory that cannot be used or resumed
    ├── PublicationError          4   the engine does not hold the trainer's weights
    ├── BadNumbersError           4   non-finite loss or gradient, three times in a row
    └── DeadlineError             3   something waited longer than its limit

To add one: subclass, draw it here, give it the exit code that a shell script should see. A message
says what is wrong, the value, where, and what to do; the command line prints it, no traceback.
"""

__all__ = [
    "BadNumbersError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeadlineError",
    "EngineError",
    "ModelError",
    "PublicationError",
    "RnowError",
    "RolloutError",
    "TeacherError",
    "TemplateError",
    "ToolDefinitionError",
    "UsageError",
]


class RnowError(Exception):
    """Base of everything that rnow raises on purpose; `exit_code` is what the process ends with."""

    exit_code: int = 1


class UsageError(RnowError):
    exit_code = 2


class ConfigError(RnowError, ValueError):
    pass


class DataError(RnowError, ValueError):
    pass


class ToolDefinitionError(RnowError, TypeError):
    pass


class TemplateError(RnowError):
    pass


class ModelError(RnowError):
    pass


class EngineError(RnowError):
    pass


class TeacherError(RnowError):
    pass


class RolloutError(RnowError):
    pass


class CheckpointError(RnowError):
    pass


class PublicationError(RnowError):
    exit_code = 4


class BadNumbersError(RnowError):
    exit_code = 4


class DeadlineError(RnowError):
    exit_code = 3
