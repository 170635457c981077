"""What pydantic finds wrong with the values of config.yml, in words: key, value, remedy."""

import difflib
from collections.abc import Sequence

from pydantic import ValidationError

from rnow.config.keys import section_keys, settings_by_key, type_in_words
from rnow.config.settings import Config
from rnow.config.source import SECRET_KEYS, ConfigSource, show

# Short names that people try, too far from ours for difflib.
_NICKNAMES = {
    "lr": "trainer.learning_rate",
    "epochs": "trainer.num_epochs",
    "steps": "trainer.max_steps",
    "beta": "algorithm.kl_penalty_coef",
}


def validate(source: ConfigSource) -> Config | None:
    """Make the Config; None where something is wrong, and then reported in `source`."""
    try:
        return Config.model_validate(source.values)
    except ValidationError as error:
        reported: set[str] = set()
        for details in error.errors(include_url=False):
            key = _setting_around([str(part) for part in details["loc"]])
            if key not in reported:
                reported.add(key)
                source.report(key, _message(source, key, details["type"], details["msg"]))
        return None


def _setting_around(loc: Sequence[str]) -> str:
    """Cut pydantic's location to the setting: it also names union members and list items."""
    settings = settings_by_key()
    for end in range(1, len(loc)):
        if ".".join(loc[:end]) in settings:
            return ".".join(loc[:end])
    return ".".join(loc)


def _message(source: ConfigSource, key: str, kind: str, text: str) -> str:
    settings, sections = settings_by_key(), section_keys()
    if kind == "extra_forbidden":
        return f"{key} is not a setting; {_advice(key)}"
    if key in sections:
        names = ", ".join(sections[key].model_fields)
        value = source.get(key)
        if isinstance(value, str) and "path" in sections[key].model_fields:
            return f"{key} is {show(value)}; it must be a section: {key}: {{path: {value}}}"
        return f"{key} is {show(value)}; it must be a section with settings: {names}"
    wanted = type_in_words(settings[key])
    if kind == "missing":
        return f"{key} is missing; it must be {wanted}"
    value = source.get(key)
    if key == "model.path" and isinstance(value, list):
        example = value[0] if value else "MODEL"
        return (
            "model.path is a list of models, and a run trains one; "
            f"start rnow run once for each: rnow run model.path={example}"
        )
    if key in SECRET_KEYS:
        return f"{key}: {text.removeprefix('Value error, ')}"
    if kind == "value_error":
        return f"{key} is {show(value)}; {text.removeprefix('Value error, ')}"
    return f"{key} is {show(value)}; it must be {wanted}"


def _advice(key: str) -> str:
    """Say what the writer of an unknown key may have meant."""
    settings, sections = settings_by_key(), section_keys()
    section, _, name = key.rpartition(".")
    elsewhere = [known.rpartition(".")[0] for known in settings if known.endswith(f".{name}")]
    if elsewhere and section not in elsewhere:
        return f"it belongs under {_join(elsewhere)}"
    if name in settings:
        return "it belongs at the top of the file"
    if name in _NICKNAMES:
        return f"did you mean {_NICKNAMES[name]}?"
    siblings = list(sections[section].model_fields if section in sections else Config.model_fields)
    if near := difflib.get_close_matches(name, siblings, n=1):
        return f"did you mean {near[0]}?"
    by_name = {known.rpartition(".")[2]: known for known in settings}
    if near := difflib.get_close_matches(name, by_name, n=1, cutoff=0.75):
        return f"did you mean {by_name[near[0]]}?"
    place = f"{section} has" if section else "the top of the file has"
    return f"{place} {', '.join(siblings)}"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
