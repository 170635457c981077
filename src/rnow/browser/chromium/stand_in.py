"""The system's Chromium in the place of the one that playwright would download.

A project may use playwright or crawl4ai as they come, which know no browser but that one. A folder
of links in playwright's own layout, named to the tool worker, lets such code run as it is.
"""

import importlib.util
import json
import platform
from collections.abc import Mapping
from pathlib import Path

from rnow.browser.chromium.executable import playwright_folder

_MACHINES = {"x86_64": "linux64", "aarch64": "linux-arm64"}


def stand_in(executable: str | None, folder: Path, *, shell: Mapping[str, str]) -> dict[str, str]:
    """Make the links in `folder`; return the variables that lead playwright there.

    None of either where playwright has a browser of its own, or where this is not Linux.
    """
    machine = _MACHINES.get(platform.machine())
    if executable is None or platform.system() != "Linux" or machine is None:
        return {}
    if Path(executable).is_relative_to(playwright_folder(shell)):
        return {}
    revision = _revision()
    for link in (
        folder / f"chromium-{revision}" / f"chrome-{machine}" / "chrome",
        folder
        / f"chromium_headless_shell-{revision}"
        / f"chrome-headless-shell-{machine}"
        / "chrome-headless-shell",
    ):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(Path(executable).absolute())
    return {"PLAYWRIGHT_BROWSERS_PATH": str(folder)}


def _revision() -> str:
    """Return the revision of Chromium that the installed playwright looks for."""
    spec = importlib.util.find_spec("playwright")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0]) / "driver" / "package" / "browsers.json"
    browsers = json.loads(file.read_text())["browsers"]
    return next(str(each["revision"]) for each in browsers if each["name"] == "chromium")
