"""Who is asking: browser.contact, decided once, before anything is loaded.

The sites that a project reads are told a mail or web address. Where config.yml has none, a person
at a terminal is asked, git's user.email being offered, and what they say is written there. Nobody's
address is sent out unasked: where nobody can answer, the error names the line to write.
"""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from rnow.errors import ConfigError
from rnow.runtime.console import sayer

if TYPE_CHECKING:
    from rnow.config.load import LoadedConfig

_GIT_LIMIT_S = 5.0
_NO_VALUE = re.compile(r"(\s*contact:)[ ]*(?:null|~)?[ ]*(#.*)?")


def decide_contact(loaded: "LoadedConfig", console: Console) -> "LoadedConfig":
    """Return the config with a contact where one is needed.

    Raises ConfigError where there is none and nobody to ask.
    """
    from rnow.rollout.project_pages import require_contact

    try:
        require_contact(loaded)
        return loaded
    except ConfigError as error:
        offered = git_email(loaded.file.parent)
        if not (sys.stdin.isatty() and console.is_terminal):
            line = f"contact: {offered} (git's user.email)" if offered else "contact: ADDRESS"
            told = f"{error.problems[0].message}; the line to write under browser: {line}"
            raise ConfigError(problems=[replace(error.problems[0], message=told)]) from error
    say = sayer(console)
    say("The sites that this project reads are told who is asking.")
    contact = typer.prompt(
        "Your mail or web address", default=offered, value_proc=_address, err=True
    )
    if write_contact(loaded, contact):
        say(f"written into {loaded.file}: browser.contact: {contact}")
    else:
        say(f"for this time only; to be asked no more, write it into {loaded.file}, under browser")
    browser = loaded.config.browser.model_copy(update={"contact": contact})
    return replace(loaded, config=loaded.config.model_copy(update={"browser": browser}))


def git_email(folder: Path) -> str | None:
    """Return git's user.email as it is set in `folder`; None without git, or without one."""
    command = ["git", "config", "user.email"]
    try:
        asked = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_GIT_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def write_contact(loaded: "LoadedConfig", contact: str) -> bool:
    """Write the address into config.yml, and leave the rest as it is; False where it cannot."""
    import yaml

    from rnow.runtime.atomic_files import replace_file

    file = loaded.file.resolve()
    lines = file.read_text(encoding="utf-8").split("\n")
    value = f"contact: {json.dumps(contact, ensure_ascii=False)}"
    if (number := loaded.lines.get("browser.contact")) is not None:
        if (found := _NO_VALUE.fullmatch(lines[number - 1])) is None:
            return False
        indent, comment = found[1].removesuffix("contact:"), found[2]
        lines[number - 1] = f"{indent}{value}" + (f"  {comment}" if comment else "")
    else:
        written = [line for key, line in loaded.lines.items() if key.startswith("browser.")]
        if not written:
            return False
        first = min(written) - 1
        lines.insert(first, f"{lines[first][: -len(lines[first].lstrip())]}{value}")
    text = "\n".join(lines)
    try:
        fits = yaml.safe_load(text)["browser"]["contact"] == contact
    except (yaml.YAMLError, LookupError, TypeError):  # a way to write it that this does not know
        fits = False
    if fits:
        replace_file(file, text)
    return bool(fits)


def _address(text: str) -> str:
    if "@" not in text and not re.match(r"https?://", text):
        raise typer.BadParameter("a mail address has an @, and a web address begins with https://")
    return text.strip()
