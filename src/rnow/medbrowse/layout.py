"""Records of data -> markdown: what all adapters write with. Pure; text in, text out."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def at(value: Record, *path: str) -> Record:
    """Return the object under these keys, {} where there is none.

    >>> at({"a": {"b": {"c": 1}}}, "a", "b")
    {'c': 1}
    """
    for key in path:
        value = value.get(key) or {}
    return value


def many(value: Record, key: str) -> Sequence[Any]:
    """Return the list under a key, empty where there is none."""
    return value.get(key) or ()


def word(value: object) -> str:
    """Return a name of an interface as people write it; "" for None.

    >>> word("ACTIVE_NOT_RECRUITING"), word("PHASE3"), word("EARLY_PHASE1"), word("NA"), word(True)
    ('Active not recruiting', 'Phase 3', 'Early phase 1', 'Not applicable', 'Yes')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if value == "NA":
        return "Not applicable"
    text = str(value).replace("_", " ").replace("PHASE", "PHASE ").capitalize()
    return " ".join(text.split())


def words(values: Iterable[object], by: str = ", ") -> str:
    return by.join(word(value) for value in values)


def facts(pairs: Mapping[str, object]) -> str:
    """Return `Name: value` lines, without those that have no value."""
    return "\n".join(
        f"{name}: {_one_line(value)}" for name, value in pairs.items() if value not in (None, "")
    )


def section(title: str, *parts: str, level: int = 2) -> str:
    """Return a heading over what there is of its parts; "" where there is nothing."""
    body = joined(*parts)
    return f"{'#' * level} {title}\n\n{body}" if body else ""


def joined(*parts: str) -> str:
    """Return what there is of these parts, one under the other."""
    return "\n\n".join(filter(None, parts))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table, "" without rows. A bar or line break in a cell is one of the table's."""
    lines = [" | ".join(_cell(value) for value in row) for row in rows]
    head = [" | ".join(columns), " | ".join("---" for _ in columns)]
    return "\n".join(f"| {line} |" for line in (*head, *lines)) if lines else ""


def _cell(value: object) -> str:
    return "" if value is None else _one_line(value).replace("|", "/")


def _one_line(value: object) -> str:
    return " ".join(str(value).split())
