"""The environment of tool workers: which variables reach the code of tools.py.

    the project's .env                all of it
    the shell's, named in tools.env   all of them; they win over .env
    the rest of the shell's           what Python needs to run, nothing that looks like a secret

A page that talks a model into printing the environment finds the keys of the tools and no others.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rnow.errors import ConfigError

_PLUMBING = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR|TEMP|TMP|DISPLAY|VIRTUAL_ENV"
    r"|PYTHONPATH|PYTHONHOME|LD_LIBRARY_PATH|DYLD_[A-Z_]*LIBRARY_PATH|SSL_CERT_(FILE|DIR)"
    r"|XDG_[A-Z]+_(HOME|DIR)|PLAYWRIGHT_BROWSERS_PATH|OMP_NUM_THREADS"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_ASSIGNMENT = re.compile(
    r"""
    [ \t]* (?:export[ \t]+)? (?P<name>[A-Za-z_][A-Za-z0-9_.-]*) [ \t]* = [ \t]*
    (?: '(?P<single>[^']*)' | "(?P<double>(?:[^"\\]|\\.)*)" | (?P<bare>(?!['"])[^\n]*?) )
    [ \t]* (?:(?<=[\s'"=])\#[^\n]*)? (?:\n|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_EMPTY_LINE = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}


def worker_environment(
    project_dir: Path, *, shell: Mapping[str, str], names: Sequence[str]
) -> dict[str, str]:
    """Return the variables of a tool worker. `names` is `tools.env`; one that is set nowhere is a
    ConfigError.
    """
    dotenv = load_dotenv(project_dir / ".env")
    for name in names:
        if name not in shell and name not in dotenv:
            raise ConfigError(
                f"config.yml: tools.env names {name}, which is set neither in this shell nor in "
                ".env; set it or take the name out"
            )
    plumbing = {
        name: value
        for name, value in shell.items()
        if _PLUMBING.fullmatch(name) and not _SECRET.search(name)
    }
    named = {name: shell[name] for name in names if name in shell}
    return plumbing | dotenv | named


def load_dotenv(file: Path) -> dict[str, str]:
    """Read lines of NAME=value; {} where there is no such file.

    `export `, comments, and quotes are understood; quoted values may run over several lines, and in
    double quotes \\n, \\t and the like are escapes. $OTHER is not expanded. Raises ConfigError with
    the line's number.
    """
    if not file.exists():
        return {}
    text = file.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    values: dict[str, str] = {}
    position = 0
    while position < len(text):
        if empty := _EMPTY_LINE.match(text, position):
            position = empty.end()
            continue
        assignment = _ASSIGNMENT.match(text, position)
        if assignment is None:
            line = text.count("\n", 0, position) + 1
            # The line is not shown: it may hold a secret.
            raise ConfigError(f"{file.name}:{line}: not of the form NAME=value")
        values[assignment["name"]] = _value(assignment)
        position = assignment.end()
    return values


def _value(assignment: re.Match[str]) -> str:
    if assignment["single"] is not None:
        return assignment["single"]
    if assignment["double"] is not None:
        return re.sub(r"\\(.)", _unescape, assignment["double"], flags=re.DOTALL)
    return assignment["bare"]


def _unescape(escape: re.Match[str]) -> str:
    return _ESCAPES.get(escape[1], escape[1])
