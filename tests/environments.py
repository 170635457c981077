"""Environments of their own for tests: real ones, whose packages are links to those of this one.

What an install would bring is known here: each distribution names what it requires. So no network
is needed, and no second is spent on copying.
"""

import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def make_environment(folder: Path, *names: str) -> Path:
    """Make a venv with the packages `names` and what they require; return its python."""
    venv.create(folder, symlinks=True)
    link_packages(folder, *names)
    return folder / "bin" / "python"


def link_packages(environment: Path, *names: str) -> None:
    """Link into a venv the packages `names` and all that they require."""
    (site,) = environment.glob("lib/python*/site-packages")
    for found in with_requirements(*names):
        tops = {Path(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}
        for top in tops:
            target = site / top
            if not target.exists():
                target.symlink_to(Path(str(found.locate_file(top))))


def with_requirements(*names: str) -> Iterator[Distribution]:
    """Yield each package of `names` with all that an install of it brings on this machine."""
    seen: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        if wanted.name.lower() in seen:
            continue
        seen.add(wanted.name.lower())
        try:
            found = distribution(wanted.name)
        except PackageNotFoundError:  # for another platform, or of an extra that is not here
            continue
        yield found
        for line in found.requires or ():
            required = Requirement(line)
            if required.marker is None or any(
                required.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras)
            ):
                waiting.append(required)
