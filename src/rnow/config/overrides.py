"""Settings given on the command line: `key=value`, laid over what the file holds, in order."""

import re
from pathlib import Path

import yaml

from rnow.config.source import SECRET_KEYS, ConfigSource, read_yaml_text, show
from rnow.errors import Problem

_WORDS = {"true": True, "false": False, "null": None, "none": None}
_INT = re.compile(r"[+-]?\d+(_\d+)*")
_FLOAT = re.compile(r"[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")
# Here "none" is a value of the setting, and not the absence of one: it turns thinking off.
_KEYS_WITH_NONE = frozenset({"rollout.reasoning_mode", "rollout.thinking_mode"})


def apply_override(source: ConfigSource, text: str) -> str | None:
    """Apply one override; return "key = new (was: old)", or None where it is a problem.

    >>> apply_override(source, "trainer.num_epochs=5")
    'trainer.num_epochs = 5 (was: 3)'
    """
    key, equals, value_text = (part.strip() for part in text.partition("="))
    if not equals or not all(key.split(".")):
        _report(
            source,
            text,
            f"Invalid override '{text}'. Use format: key=value or nested.key=value",
        )
        return None
    blocked = _open_sections(source, key)
    if blocked is not None:
        _report(source, text, f"Cannot override '{key}': '{blocked}' is not a nested object")
        return None
    try:
        value = _parse_value(key, value_text)
    except yaml.MarkedYAMLError as error:
        _report(source, text, f"{value_text} is not valid YAML: {error.problem}")
        return None
    except ValueError as error:
        _report(source, text, f"{show(value_text)} cannot be read: {error}")
        return None
    secret = key in SECRET_KEYS
    was = _shown(source.get(key), secret) if source.has(key) else "not set"
    source.set(key, value)
    # What the file or an earlier override said here, and below this key, is gone.
    for written in [known for known in source.lines if f"{known}.".startswith(f"{key}.")]:
        del source.lines[written]
    for given in [known for known in source.overrides if f"{known}.".startswith(f"{key}.")]:
        del source.overrides[given]
    source.overrides[key] = f"override {key}=…" if secret else f"override {text}"
    return f"{key} = {_shown(value, secret)} (was: {was})"


def _shown(value: object, secret: bool) -> str:
    return "…" if secret and value is not None else show(value)


def _open_sections(source: ConfigSource, key: str) -> str | None:
    """Make the missing sections around `key`; return the one that is in the way, if any."""
    *parents, _ = key.split(".")
    for depth in range(1, len(parents) + 1):
        section = ".".join(parents[:depth])
        if source.get(section) is None:
            source.set(section, {})
        elif not isinstance(source.get(section), dict):
            return section
    return None


def _parse_value(key: str, text: str) -> object:
    if text.lower() in _WORDS and not (text.lower() == "none" and key in _KEYS_WITH_NONE):
        return _WORDS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if text.startswith(("[", "{")):
        source = ConfigSource(Path(key))
        value = read_yaml_text(text, source=source)
        if source.problems:
            raise ValueError(source.problems[0].message)
        return value
    return text


def _report(source: ConfigSource, text: str, message: str) -> None:
    source.problems.append(Problem(file=f"override {text}", line=None, key=None, message=message))
