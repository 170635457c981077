"""What the user wrote: the values of config.yml, and the line of each.

Knows YAML, files and lines, and nothing of settings. JSON is a part of YAML, so config.json is read
the same way. Duplicate keys are problems here, since YAML's own loader lets the last one win.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from rnow.errors import ConfigError, Problem

_MERGE_TAG = "tag:yaml.org,2002:merge"
_MAX_VALUES = 100_000  # a few lines of anchors within anchors would fill the memory
SECRET_KEYS = frozenset({"rollout.mcp_url"})  # whose values no message shows
_CONTAINER_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


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

    def report(
        self, key: str, message: str, *, severity: Literal["error", "warning"] = "error"
    ) -> None:
        """Keep a problem, placed at `key` or at the nearest section around it that was written."""
        file, line = self.place(key)
        self.problems.append(
            Problem(file=file, line=line, key=key, message=message, severity=severity)
        )

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


def read_yaml_text(text: str, *, source: ConfigSource | None = None) -> Any:
    """Return the value of one YAML document; with `source`, note lines and duplicate keys there.

    Keys of mappings are text as written: `on: 1` has the key "on".
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _Builder(loader, source).build(node, "")
    finally:
        loader.dispose()


class _Builder:
    """Turns YAML nodes into values, and keeps what PyYAML's own constructor forgets."""

    def __init__(self, loader: yaml.SafeLoader, source: ConfigSource | None) -> None:
        self.loader = loader
        self.source = source
        self.open_nodes: set[int] = set()  # an anchor that holds itself would never end
        self.num_values = 0

    def build(self, node: yaml.Node, key: str) -> Any:
        self.num_values += 1
        if self.num_values > _MAX_VALUES:
            raise _at(node, f"more than {_MAX_VALUES} values, anchors written out")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag not in _CONTAINER_TAGS:
            raise _at(node, f"the tag {node.tag} has no meaning here")
        if id(node) in self.open_nodes:
            raise _at(node, "an anchor holds itself")
        self.open_nodes.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, key)
            return [self.build(item, f"{key}.{i}") for i, item in enumerate(node.value)]
        finally:
            self.open_nodes.remove(id(node))

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.loader.construct_object(node)
        except ValueError as error:
            raise _at(node, str(error)) from error

    def _mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        values: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for name_node, value_node in node.value:
            line = name_node.start_mark.line + 1
            if name_node.tag == _MERGE_TAG:
                merged |= self._merge(value_node, key)
                continue
            if not isinstance(name_node, yaml.ScalarNode):
                raise _at(name_node, "a key must be one word")
            name = str(name_node.value)
            inner_key = f"{key}.{name}" if key else name
            if name in values:
                self._report_duplicate(inner_key, line, first_lines[name])
                continue
            first_lines[name] = line
            if self.source is not None:
                self.source.lines[inner_key] = line
            values[name] = self.build(value_node, inner_key)
        return merged | values

    def _merge(self, node: yaml.Node, key: str) -> dict[str, Any]:
        values = self.build(node, key)
        if isinstance(values, list):
            # Of several merged mappings the first one wins.
            values = {name: value for part in reversed(values) for name, value in part.items()}
        if not isinstance(values, dict):
            raise _at(node, "<< merges mappings only")
        return values

    def _report_duplicate(self, key: str, line: int, first_line: int) -> None:
        if self.source is not None:
            message = f"{key} is set twice, first in line {first_line}; keep one of them"
            self.source.problems.append(
                Problem(file=str(self.source.file), line=line, key=key, message=message)
            )


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


def _at(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _unreadable(file: Path, line: int | None, message: str) -> ConfigError:
    problem = Problem(file=str(file), line=line, key=None, message=message)
    return ConfigError(problems=[problem])
