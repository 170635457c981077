"""Which Chromium there is on this machine: found by looking at files, nothing is started."""

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from rnow.errors import ConfigError

HOW_TO_INSTALL = (
    "install one (Debian: apt-get install chromium; elsewhere: playwright install chromium) or "
    "name one in browser.executable"
)
NO_CHROMIUM = (
    "there is no Chromium on this machine: pages that their scripts fill stay as empty as plain "
    f"HTTP finds them; {HOW_TO_INSTALL}"
)
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_MAC_APPS = ("Google Chrome", "Chromium")
_REVISION = re.compile(r"chromium(?:_headless_shell)?-(\d+)")
_OF_PLAYWRIGHT = ("chrome", "headless_shell", "chrome-headless-shell", "Chromium", "Google Chrome*")


def find_chromium(setting: str | None, *, directory: Path) -> Path | None:
    """Return the browser to use: the one that `browser.executable` names, a path from `directory`;
    else the newest that playwright has installed; else the system's. None where there is none.

    Raises ConfigError for a setting that names no program.
    """
    if setting is not None:
        named = directory / Path(setting).expanduser()
        if not _is_program(named):
            raise ConfigError(
                f"browser.executable is {setting}, which is no program; name one, or remove the "
                "line: then playwright's Chromium or the system's is used"
            )
        return named
    return next(_installed(), None)


def playwright_folder(environment: Mapping[str, str]) -> Path:
    """Return where playwright keeps the browsers that it has downloaded."""
    if named := environment.get("PLAYWRIGHT_BROWSERS_PATH"):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ms-playwright"
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ms-playwright"


def _installed() -> Iterator[Path]:
    folder = playwright_folder(os.environ)
    revisions = {
        int(match[1]): entry
        for entry in sorted(folder.glob("chromium*-*"))
        if (match := _REVISION.fullmatch(entry.name))
    }
    for _, entry in sorted(revisions.items(), reverse=True):
        for name in _OF_PLAYWRIGHT:
            for pattern in (f"chrome-*/{name}", f"chrome-*/*.app/Contents/MacOS/{name}"):
                yield from filter(_is_program, sorted(entry.glob(pattern)))
    yield from (Path(found) for name in _NAMES if (found := shutil.which(name)))
    apps = (Path(f"/Applications/{name}.app/Contents/MacOS/{name}") for name in _MAC_APPS)
    yield from filter(_is_program, apps)


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
