import os
import shutil
from pathlib import Path

import pytest

from rnow.browser.chromium.executable import find_chromium
from rnow.errors import ConfigError


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any browser, whose PATH is a folder of the test's."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PLAYWRIGHT_BROWSERS_PATH", str(tmp_path / "browsers"))
    return tmp_path


def program(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


@pytest.mark.skipif(os.path.isdir("/Applications"), reason="macOS may have a browser anyway")
def test_a_machine_may_have_no_chromium(bare: Path) -> None:
    assert find_chromium(None, directory=bare) is None


def test_the_systems_is_found_after_playwrights_newest_and_that_after_the_setting(
    bare: Path,
) -> None:
    system = program(bare / "bin" / "chromium")
    assert find_chromium(None, directory=bare) == system
    old = program(bare / "browsers" / "chromium-99" / "chrome-linux" / "chrome")
    assert find_chromium(None, directory=bare) == old
    shell = "chromium_headless_shell-1255/chrome-headless-shell-linux64/chrome-headless-shell"
    newest = program(bare / "browsers" / shell)
    program(bare / "browsers" / "chromium-1000" / "chrome-linux" / "chrome")
    assert find_chromium(None, directory=bare) == newest
    named = program(bare / "mine" / "chrome")
    assert find_chromium("mine/chrome", directory=bare) == named
    assert find_chromium(str(named), directory=Path("elsewhere")) == named


def test_an_unfinished_download_is_no_browser(bare: Path) -> None:
    file = program(bare / "browsers" / "chromium-1" / "chrome-linux" / "chrome")
    file.chmod(0o644)
    system = program(bare / "bin" / "google-chrome")
    assert find_chromium(None, directory=bare) == system


def test_a_setting_that_names_no_program_is_an_error(bare: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        find_chromium("no/chrome", directory=bare)
    assert str(refused.value) == (
        "browser.executable is no/chrome, which is no program; name one, or remove the line: then "
        "playwright's Chromium or the system's is used"
    )


def test_the_tests_of_a_real_chromium_fail_where_there_is_none(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chromium import chromium_executable

    with pytest.raises(pytest.fail.Exception) as failed:
        chromium_executable()
    assert str(failed.value) == (
        "these tests need a Chromium: install one (Debian: apt-get install chromium; elsewhere: "
        "playwright install chromium) or name one in browser.executable"
    )
    assert shutil.which("chromium") is None
