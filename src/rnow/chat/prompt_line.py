"""One line of train.jsonl -> one Prompt: the rules for its fields, and `$name` templating.

Fields that rnow does not know are allowed and left alone; what looks like a slip is told. Problems
are collected, since one line can have several and a file many.
"""

import difflib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from rnow.config.types import DatasetType
from rnow.errors import Problem
from rnow.records import Message, Prompt

_ROLES = ("system", "user", "assistant", "tool")
_FIELDS = ("messages", "tools", "metadata", "variables", "rewards", "grader")
_CONTAINER_KEYS = ("docker", "docker_env", "docker_cmd", "sandbox")
_IMAGE_PARTS = ("image", "image_url", "input_image")
# Python's string.Template syntax; `$$` is matched so that a name behind it is not.
_VARIABLE = re.compile(r"\$(?:\$|([_a-zA-Z][_a-zA-Z0-9]*)|\{([_a-zA-Z][_a-zA-Z0-9]*)\})")
_SURROGATE = re.compile("[\ud800-\udfff]")


def last_answer(messages: Sequence[Message]) -> str | None:
    """Return what is wrong with messages that end with one of the assistant's own."""
    if not messages or not _is_answer(messages[-1]):
        return None
    return (
        "the last message is the assistant's: the student would go on after an answer that it "
        "reads; remove it, or leave such messages out with data.drop_last_answer: true"
    )


def without_last_answer(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entry up to the last message that is not the assistant's."""
    messages = entry.get("messages")
    if not isinstance(messages, list):
        return entry
    kept = list(messages)
    while kept and _is_answer(kept[-1]):
        kept.pop()
    return {**entry, "messages": kept} if kept else entry


def _is_answer(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def fill_in(text: str, values: Mapping[str, Any]) -> str:
    """Put values in the place of `$name` and `${name}`; unknown names and `$$` stay as they are.

    >>> fill_in("$$5 for $drug, not $other", {"drug": "aspirin"})
    '$$5 for aspirin, not $other'
    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return str(values[name]) if name in values else match[0]

    return _VARIABLE.sub(value_of, text)


@dataclass
class EntryReader:
    """Reads one line of a file and adds what is wrong with it to `problems`."""

    file: str
    line: int
    dataset_type: DatasetType
    tool_names: Collection[str] | None
    problems: list[Problem]

    def parse(self, raw: bytes) -> dict[str, Any] | None:
        """Return the JSON object of the line; None, and a problem, where it holds none."""
        try:
            entry = json.loads(raw.decode())
        except UnicodeDecodeError as error:
            byte = f"{error.object[error.start]:#04x} at byte {error.start + 1}"
            problem = f"is not UTF-8 text ({byte})"
        except json.JSONDecodeError as error:
            problem = f"Invalid JSON - {error.msg} (column {error.colno})"
        except (ValueError, RecursionError) as error:
            # Numbers of thousands of digits, thousands of brackets: JSON, but nothing for Python.
            problem = f"Invalid JSON - {error}"
        else:
            if isinstance(entry, dict):
                return entry
            problem = f"must be a JSON object, not {_show(entry)}"
        self._add(None, problem)
        return None

    def container_keys(self, entry: Mapping[str, Any]) -> list[str]:
        """Name the fields that ask for a container; they have no meaning on one's own machine."""
        return [key for key in _CONTAINER_KEYS if entry.get(key)]

    def misspelt(self, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Return the fields that look like slips of one that is not there, each with a sentence."""
        absent = [name for name in _FIELDS if name not in entry]
        near = {key: _near(key, tuple(absent)) for key in entry if key not in _FIELDS}
        return [
            (key, f"{key} is no field that is read; did you mean '{names[0]}'?")
            for key, names in near.items()
            if names
        ]

    def prompt(self, entry: Mapping[str, Any], *, index: int) -> Prompt | None:
        """Return the checked prompt; None, and problems, where something is wrong."""
        num_before = len(self.problems)
        metadata = self._mapping(entry, "metadata")
        variables = self._mapping(entry, "variables")
        rewards = self._names(entry, "rewards") or ()
        tools = self._names(entry, "tools")
        grader = self._name(entry, "grader")
        self._check_container(entry)
        if self.dataset_type == "rl" and not rewards:
            self._report("rewards", "must name one reward at least in dataset_type rl")
        self._check_tools_exist(tools or ())
        messages: tuple[Message, ...] = ()
        if self.dataset_type == "midtrain":
            self._check_text(entry)
        else:
            messages = self._messages(entry, {**metadata, **variables})
        if len(self.problems) > num_before:
            return None
        return Prompt(
            index=index,
            line=self.line,
            messages=messages,
            tools=tools,
            metadata=metadata,
            variables=variables,
            rewards=rewards,
            grader=grader,
        )

    def _report(self, key: str, what: str) -> None:
        self._add(key, f"{key} {what}")

    def _add(self, key: str | None, message: str) -> None:
        self.problems.append(Problem(file=self.file, line=self.line, key=key, message=message))

    def _mapping(self, entry: Mapping[str, Any], key: str) -> dict[str, Any]:
        value = entry.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._report(key, f"must be an object, not {_show(value)}")
            return {}
        return value

    def _name(self, entry: Mapping[str, Any], key: str) -> str | None:
        value = entry.get(key)
        if value is None or (isinstance(value, str) and value):
            return value
        self._report(key, f"must be a name, not {_show(value)}")
        return None

    def _names(self, entry: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
        value = entry.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            self._report(key, f"must be a list of names, not {_show(value)}")
            return None
        return tuple(value)

    def _check_container(self, entry: Mapping[str, Any]) -> None:
        docker, docker_env = entry.get("docker"), entry.get("docker_env")
        if docker is not None and not isinstance(docker, str):
            self._report("docker", f"must be the name of an image, not {_show(docker)}")
        if docker_env is None:
            return
        texts = docker_env.items() if isinstance(docker_env, dict) else [(docker_env, None)]
        if not all(isinstance(value, str) for _, value in texts):
            self._report("docker_env", f"must be an object of texts, not {_show(docker_env)}")
        elif docker_env and not docker:
            self._report("docker_env", "requires docker field to be set")

    def _check_tools_exist(self, names: Collection[str]) -> None:
        if self.tool_names is None:
            return
        for i, name in enumerate(names):
            if name in self.tool_names:
                continue
            near = difflib.get_close_matches(name, self.tool_names, n=1)
            if near:
                remedy = f"did you mean '{near[0]}'?"
            elif self.tool_names:
                remedy = f"it has {', '.join(sorted(self.tool_names))}"
            else:
                remedy = "there is no tool at all; write it, or remove tools from the entry"
            self._report(
                f"tools.{i}", f"is '{name}', which no tool of the project is called; {remedy}"
            )

    def _check_text(self, entry: Mapping[str, Any]) -> None:
        text = entry.get("text")
        if not isinstance(text, str) or not text:
            self._report("text", f"{_is(entry, 'text')}; it must be a text that is not empty")

    def _messages(self, entry: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[Message, ...]:
        messages = entry.get("messages")
        if not isinstance(messages, list) or not messages:
            what = f"{_is(entry, 'messages')}; it must be a list with a message at least"
            self._report("messages", what)
            return ()
        return tuple(
            self._message(message, values, f"messages.{i}") for i, message in enumerate(messages)
        )

    def _message(self, message: Any, values: Mapping[str, Any], key: str) -> Message:
        if not isinstance(message, dict):
            self._report(key, f"must be an object with role and content, not {_show(message)}")
            return {}
        if message.get("role") not in _ROLES:
            what = f"{_is(message, 'role')}; it must be one of {', '.join(_ROLES)}"
            self._report(f"{key}.role", what)
        self._check_tool_calls(message, f"{key}.tool_calls")
        content = fill_in(self._content(message, f"{key}.content"), values)
        filled = {**message, "content": content}
        if half := _SURROGATE.search(json.dumps(filled, ensure_ascii=False)):
            # JSON can write one half of a surrogate pair; no tokenizer can read it.
            code = f"\\u{ord(half[0]):04x}"
            self._report(key, f"holds half a character ({code}), which is no text")
        return filled

    def _content(self, message: Mapping[str, Any], key: str) -> str:
        content = message.get("content")
        if isinstance(content, str):
            return content
        if isinstance(content, list):
            return "\n".join(self._part(part, f"{key}.{i}") for i, part in enumerate(content))
        if "content" not in message:
            self._report(key, "is missing; it must be a text")
        elif content is None:
            self._report(key, 'is null; write "" for an empty text')
        else:
            self._report(key, f"must be a text, not {_show(content)}")
        return ""

    def _part(self, part: Any, key: str) -> str:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        if kind in _IMAGE_PARTS:
            self._report(key, "is an image; images are not supported")
        else:
            wanted = '{"type": "text", "text": …}'
            self._report(key, f"must be {wanted}, not {_show(part)}")
        return ""

    def _check_tool_calls(self, message: Mapping[str, Any], key: str) -> None:
        calls = message.get("tool_calls")
        if calls is None:
            return
        if not isinstance(calls, list):
            self._report(key, f"must be a list, not {_show(calls)}")
            return
        for i, call in enumerate(calls):
            function = call.get("function") if isinstance(call, dict) else None
            if not (
                isinstance(function, dict)
                and isinstance(function.get("name"), str)
                and isinstance(function.get("arguments"), str | dict)
            ):
                wanted = '{"function": {"name": …, "arguments": …}}'
                self._report(f"{key}.{i}", f"must be {wanted}, not {_show(call)}")
            elif not _is_object(function["arguments"]):
                what = f"must be a JSON object, not {_show(function['arguments'])}"
                self._report(f"{key}.{i}.function.arguments", what)


def _is_object(arguments: str | dict[str, Any]) -> bool:
    """Say whether arguments are an object: as such, or as JSON text, which is OpenAI's form."""
    if isinstance(arguments, dict):
        return True
    try:
        return isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        return False


def _is(fields: Mapping[str, Any], name: str) -> str:
    return f"is {_show(fields[name])}" if name in fields else "is missing"


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()
    return text if len(text) <= 50 else f"{text[:49]}…"


@cache
def _near(key: str, names: tuple[str, ...]) -> list[str]:
    return difflib.get_close_matches(key, names, n=1, cutoff=0.85)
