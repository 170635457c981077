"""Files of prompts in other forms than one JSON object a line, told apart by how they begin.

Of such a file nearly every line is wrong; what its writer needs is one line that says what it is
and what to do.
"""

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any

_CONTAINERS = (
    (b"PAR1", "a Parquet file", "parquet"),
    (b"ARROW1", "an Arrow file", "arrow"),
    (b"\x1f\x8b", "packed with gzip", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unzstd"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", None),
    (b"SQLite format 3\0", "an SQLite database", None),
)
_WIDE_MARKS = (  # UTF-32's begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_COLUMN = re.compile(r"[A-Za-z_][\w .-]*")
_ROLES = "human: user, gpt: assistant"


def foreign_form(data: bytes, name: str) -> str | None:
    """Return what the file `name` is and what to do, where it is not one JSON object a line."""
    for mark, what, way in _CONTAINERS:
        if data.startswith(mark):
            return f"is {what}; {_unpacked(name, way)}"
    encoding = _wide_encoding(data)
    if encoding is not None:
        return f"is {encoding}; save it as UTF-8: iconv -f {encoding} -t UTF-8 {name} > utf8.jsonl"
    start = data.lstrip()[:200]
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself; fetch it: git lfs pull"
    if start.lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, as a failed download leaves one; download the file again"
    return _other_json(data, name) if start[:1] in (b"[", b"{") else _table(data)


def foreign_entry(entry: Mapping[str, Any]) -> str | None:
    """Return what an entry has in the place of messages and what to do, where that is known."""
    messages = entry.get("messages")
    if isinstance(messages, list) and messages and all(map(_is_sharegpt, messages)):
        return f"messages have from and value; rename them to role ({_ROLES}) and content"
    if "messages" in entry:
        return None
    for key in ("conversations", "conversation", "dialogue", "dialog"):
        turns = entry.get(key)
        if isinstance(turns, list) and turns and all(isinstance(turn, dict) for turn in turns):
            inner = ""
            if all(map(_is_sharegpt, turns)):
                inner = f", and in them from to role ({_ROLES}), value to content"
            return f"has {key} where messages are wanted; rename it to messages{inner}"
    if isinstance(entry.get("prompt"), list):
        return "has prompt where messages are wanted; rename it to messages"
    for key in ("prompt", "instruction", "question", "query", "input", "problem"):
        if isinstance(entry.get(key), str):
            wanted = f'{{"messages": [{{"role": "user", "content": <its {key}>}}]}}'
            return f"has {key} where messages are wanted; write {wanted}"
    return None


def _is_sharegpt(turn: Any) -> bool:
    return isinstance(turn, dict) and "from" in turn and "value" in turn and "role" not in turn


def _unpacked(name: str, way: str | None) -> str:
    wanted = "one JSON object a line is wanted"
    if way in ("parquet", "arrow"):
        script = (
            "from datasets import load_dataset; "
            f"load_dataset('{way}', data_files='{name}', split='train').to_json('prompts.jsonl')"
        )
        return f'{wanted}: python -c "{script}"'
    return wanted if way is None else f"{wanted}: {way} < {name} > prompts.jsonl"


def _wide_encoding(data: bytes) -> str | None:
    for mark, name in _WIDE_MARKS:
        if data.startswith(mark):
            return name
    # Without a mark: of each pair of bytes, one is zero.
    head = data[:64]
    for first, name in ((0, "UTF-16BE"), (1, "UTF-16LE")):
        if len(head) > 3 and not any(head[first::2]) and all(head[1 - first :: 2]):
            return name
    return None


def _other_json(data: bytes, name: str) -> str | None:
    """Tell an array, and objects that go over several lines."""
    wanted = "one object a line is wanted"
    first = data.lstrip().partition(b"\n")[0]
    try:
        if isinstance(json.loads(first), dict):
            return None
    except (ValueError, RecursionError):
        pass
    try:
        text = data.decode().lstrip()
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and not text[end:].strip():
        return f"is one JSON array; {wanted}: jq -c '.[]' {name} > prompts.jsonl"
    if isinstance(value, dict) and "\n" in text[:end]:
        lists = [key for key, inner in value.items() if isinstance(inner, list)]
        if "messages" not in value and len(lists) == 1 and not text[end:].strip():
            way = f"jq -c '.[\"{lists[0]}\"][]' {name} > prompts.jsonl"
            return f"is one JSON object with the list {lists[0]}; {wanted}: {way}"
        return f"has objects over several lines; {wanted}: jq -c . {name} > prompts.jsonl"
    return None


def _table(data: bytes) -> str | None:
    lines = data.decode(errors="replace").strip().split("\n", 2)
    for separator, kind in ((",", "CSV"), ("\t", "tab-separated"), (";", "CSV")):
        names = [name.strip().strip('"') for name in lines[0].split(separator)]
        if len(lines) > 1 and len(names) > 1 and all(map(_COLUMN.fullmatch, names)):
            return (
                f"is a {kind} table ({', '.join(names)}); one JSON object a line is wanted, with "
                "messages made of its columns"
            )
    return None
