"""The environment of tool workers: which variables reach the code of tools.py.

    the project's .env                all of it
    the shell's, named in tools.env   all of them; they win over .env
    the rest of the shell's           what Python needs to run, nothing that looks like a secret
    clock, language, hashes           the same for everyone: UTC, C.UTF-8, seed 0

So a run that is gone on with from another terminal, on another machine, is one run: what a tool
prints of a date or sorts by a name does not depend on who started it. tools.env and .env say
otherwise where they name one of these when the run begins; from then on they are kept with it.

A page that talks a model into printing the environment finds the keys of the tools and no others.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from dotenv.parser import parse_stream

from rnow.errors import ConfigError

_PLUMBING = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|TEMP|TMP|DISPLAY|VIRTUAL_ENV"
    r"|PYTHONPATH|PYTHONHOME|LD_LIBRARY_PATH|DYLD_[A-Z_]*LIBRARY_PATH|SSL_CERT_(FILE|DIR)"
    r"|XDG_[A-Z]+_(HOME|DIR)|PLAYWRIGHT_BROWSERS_PATH|OMP_NUM_THREADS"
)
_FIXED = {"TZ": "UTC", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def fixed_variables(
    project_dir: Path, *, shell: Mapping[str, str], names: Sequence[str]
) -> dict[str, str]:
    """Return clock, language and seed as a run that begins now would have them."""
    there = [name for name in names if name in shell]  # the others are told where tools are started
    environment = worker_environment(project_dir, shell=shell, names=there)
    return {name: environment[name] for name in _FIXED}


def worker_environment(
    project_dir: Path,
    *,
    shell: Mapping[str, str],
    names: Sequence[str],
    kept: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Return the variables of a tool worker. `names` is `tools.env`; one that is set nowhere is a
    ConfigError. `kept` are those of the run, which nothing changes.
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
    return plumbing | _FIXED | dotenv | named | dict(kept)


def load_dotenv(file: Path) -> dict[str, str]:
    """Read lines of NAME=value as python-dotenv does; {} where there is no such file.

    $OTHER is not expanded. Raises ConfigError with the line's number.
    """
    if not file.exists():
        return {}
    values: dict[str, str] = {}
    with file.open(encoding="utf-8-sig") as text:
        for binding in parse_stream(text):
            name, value = binding.key, binding.value
            if name is None and not binding.error:
                continue  # a comment, or the end
            if name is None or value is None or not _NAME.fullmatch(name):
                written = binding.original.string
                blank = written[: len(written) - len(written.lstrip())].count("\n")
                # The line is not shown: it may hold a secret.
                line = binding.original.line + blank
                raise ConfigError(f"{file.name}:{line}: not of the form NAME=value")
            values[name] = value
    return values
