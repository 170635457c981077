"""The settings as a list: every dotted key with its field, and what it takes in words.

Messages, docs/configuration.md and the test that walks both are made from this.
"""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from rnow.config.mcp_servers import McpServer
from rnow.config.settings import Config
from rnow.config.types import Section

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list[str]: "a list of texts",
    list[McpServer]: "a URL, or a list of URLs, {url: …} and {command: …}",
    dict[str, str]: "a mapping of texts to texts",
    dict[str, Any]: "a mapping",
    type(None): "null",
}
_WHOLE = ("engine.args", "teacher.args")  # mappings that are one setting


def settings_by_key() -> dict[str, FieldInfo]:
    """Return every setting under its dotted key, "trainer.num_epochs", in the order of the page."""
    return {key: field for key, field, section in _walk(Config) if section is None}


def section_keys() -> dict[str, type[Section]]:
    """Return every section under its dotted key: "trainer", "resources.student"."""
    return {key: section for key, _, section in _walk(Config) if section is not None}


def flat_values(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return what a config holds by dotted keys; a mapping that is one setting stays one value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value and prefix + key not in _WHOLE:
            flat |= flat_values(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _walk(
    around: type[Section], *, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo, type[Section] | None]]:
    """Yield key, field, and the section that it holds where it is none of the settings."""
    for name, field in around.model_fields.items():
        members = (field.annotation, *get_args(field.annotation))
        sections = (one for one in members if isinstance(one, type) and issubclass(one, Section))
        section = next(sections, None)
        yield prefix + name, field, section
        if section is not None:
            yield from _walk(section, prefix=f"{prefix}{name}.")


def type_in_words(field: FieldInfo) -> str:
    """Say what a setting takes, as "a whole number of at least 1, or null"."""
    return _annotation_in_words(field.annotation, bounds=_bounds_in_words(field))


def _annotation_in_words(annotation: Any, *, bounds: str) -> str:
    if get_origin(annotation) in (Union, UnionType):
        # The bounds belong to the number; null comes last.
        members = sorted(get_args(annotation), key=lambda member: member is type(None))
        return ", or ".join(_annotation_in_words(member, bounds=bounds) for member in members)
    if get_origin(annotation) is Annotated:
        return _annotation_in_words(get_args(annotation)[0], bounds=bounds)
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if get_origin(annotation) is list and annotation not in _WORDS:
        return f"a list, each {_annotation_in_words(get_args(annotation)[0], bounds=bounds)}"
    return _WORDS[annotation] + (bounds if annotation in (int, float, str) else "")


def _bounds_in_words(field: FieldInfo) -> str:
    low, above = None, ""
    for item in field.metadata:
        match item:
            case Gt(gt=bound):
                above = f" above {bound}"
            case Lt(lt=bound):
                return f"{above} and below {bound}"
            case Ge(ge=bound):
                low = bound
            case Le(le=bound):
                return f" from {low} to {bound}"
            case MinLen():
                return " that is not empty"
    return above if low is None else f" of at least {low}"
