"""What the user wrote: the values of config.yml, and the line of each.

Knows YAML, files and lines, and nothing of settings. JSON is a part of YAML, so config.json is read
the same way. Duplicate keys are problems here, since YAML's own loader lets the last one win.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rnow.errors import ConfigError, Problem, Severity

_MERGE_TAG = "tag:yaml.org,2002:merge"
_TEXT_TAG = "tag:yaml.org,2002:str"
_MAX_VALUES = 100_000  # a few lines of anchors within anchors would fill the memory
SECRET_KEYS = frozenset({"rollout.mcp_url"})  # whose values no message shows


@dataclass
class ConfigSource:
    """Nested values with the place of each, and the problems found so far.

    Loading changes it in steps: overrides, old keys, validation.
    """

    file: Path
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)  # dotted key -> line in the file, from 1
    overrides: dict[str, str] = field(default_factory=dict)  # dotted key -> "override KEY=VALUE"
    problems: list[Problem] = field(default_factory=list)

    def report(self, key: str, message: str, *, severity: Severity = "error") -> None:
        """Keep a problem, placed at `key` or at the nearest section around it that was written."""
        file, line = self.place(key)
        self.problems.append(
            Problem(file=file, line=line, key=key, message=message, severity=severity)
        )

    def warn(self, key: str, message: str) -> None:
        """Report what loads, but not as its writer may think."""
        self.report(key, message, severity="warning")

    def place(self, key: str) -> tuple[str, int | None]:
        """Return the file and line of `key`, or the override that set it or something inside it."""
        around = key
        while around:
            if around in self.overrides:
                return self.overrides[around], None
            if around in self.lines:
                return str(self.file), self.lines[around]
            if around == key:
                for known, override in self.overrides.items():
                    if known.startswith(f"{key}."):
                        return override, None
            around = around.rpartition(".")[0]
        return str(self.file), None

    def section_of(self, key: str) -> dict[str, Any]:
        """Return the mapping that holds `key`; an empty one where there is none."""
        section: Any = self.values
        for part in key.split(".")[:-1]:
            section = section.get(part)
            if not isinstance(section, dict):
                return {}
        return section  # type: ignore[no-any-return]  # values are whatever YAML holds

    def has(self, key: str) -> bool:
        return key.rpartition(".")[2] in self.section_of(key)

    def get(self, key: str) -> Any:
        """Return the value under a dotted key, None where there is none."""
        return self.section_of(key).get(key.rpartition(".")[2])

    def pop(self, key: str) -> Any:
        return self.section_of(key).pop(key.rpartition(".")[2])

    def set(self, key: str, value: Any) -> None:
        self.section_of(key)[key.rpartition(".")[2]] = value


def read_source(file: Path) -> ConfigSource:
    """Read a YAML or JSON file that holds a mapping; ConfigError where it cannot be read."""
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        message = f"is not UTF-8 text (byte {error.object[error.start]:#04x})"
        raise _unreadable(file, line, message) from error
    if file.suffix == ".json":
        # Tabs may stand between JSON's tokens and never inside its strings; YAML knows no tabs.
        text = text.replace("\t", " ")
    source = ConfigSource(file)
    try:
        values = read_yaml_text(text, source=source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _unreadable(
            file, mark.line + 1 if mark else None, f"is not valid YAML: {error.problem}"
        ) from error
    except yaml.YAMLError as error:
        raise _unreadable(file, None, f"is not valid YAML: {error}") from error
    except RecursionError as error:
        raise _unreadable(file, None, "is nested too deeply to be a config.yml") from error
    if values is None:
        raise _unreadable(file, None, "is empty; docs/configuration.md has an example")
    if not isinstance(values, dict):
        raise _unreadable(file, 1, f"must be a mapping of settings, not {show(values)}")
    source.values = values
    return source


def read_yaml_text(text: str, *, source: ConfigSource) -> Any:
    """Return the value of one YAML document; lines and duplicate keys are noted in `source`."""
    loader = _Loader(text, source)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """YAML's own loader, which forgets lines and lets the last of two equal keys win.

    Keys are text as written: `on: 1` has the key "on". Each use of an anchor is a value of its own,
    so that what becomes of one section does not become of another.
    """

    def __init__(self, text: str, source: ConfigSource) -> None:
        super().__init__(text)
        self.source = source
        self.key = ""  # the dotted key of what is being read
        self.num_values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> Any:
        """Read what stands at `index`: a key's node, a number, or None for a key and the whole."""
        if index is None:
            node = super().compose_node(parent, index)  # type: ignore[arg-type]  # typeshed: int
            return _text(node) if isinstance(parent, yaml.MappingNode) else node
        around, name = self.key, index.value if isinstance(index, yaml.Node) else index
        self.key = f"{around}.{name}" if around else str(name)
        if isinstance(index, yaml.Node) and index.tag != _MERGE_TAG:
            self._note_line(index.start_mark.line + 1)
        node = super().compose_node(parent, index)
        self.key = around
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        self.num_values += 1
        if self.num_values > _MAX_VALUES:
            raise _at(node, f"more than {_MAX_VALUES} values, anchors written out")
        self.constructed_objects.pop(node, None)
        try:
            return super().construct_object(node, deep=True)
        except ValueError as error:
            raise _at(node, str(error)) from error

    def _note_line(self, line: int) -> None:
        lines = self.source.lines
        if self.key not in lines:
            lines[self.key] = line
            return
        message = f"{self.key} is set twice, first in line {lines[self.key]}; keep one of them"
        file = str(self.source.file)
        problem = Problem(file=file, line=line, key=self.key, message=message)
        self.source.problems.append(problem)


def show(value: object) -> str:
    """Write a value as YAML would have it, cut to 50 characters."""
    match value:
        case None:
            text = "null"
        case bool():
            text = str(value).lower()
        case str():
            text = f"'{value}'"
        case _:
            text = str(value)
    return text if len(text) <= 50 else f"{text[:49]}…"


def _text(node: Any) -> yaml.Node:
    """Return a key as text, but << as what it is."""
    if not isinstance(node, yaml.ScalarNode):
        raise _at(node, "a key must be one word")
    tag = _MERGE_TAG if node.tag == _MERGE_TAG else _TEXT_TAG
    return yaml.ScalarNode(tag, node.value, node.start_mark, node.end_mark)


def _at(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _unreadable(file: Path, line: int | None, message: str) -> ConfigError:
    problem = Problem(file=str(file), line=line, key=None, message=message)
    return ConfigError(problems=[problem])
