"""The process that Chromium is: its sandbox, its environment, and what is said where it ends."""

import logging
import os
from pathlib import Path

import pytest
from chromium import browser_processes, chromium_executable, open_web
from playwright._impl._driver import compute_driver_executable
from processes import is_alive, until
from yarl import URL

from rnow.browser.chromium import driver, source
from rnow.browser.errors import NotRenderedError

pytestmark = pytest.mark.slow

PAGE = "<h1>Title</h1><script>document.body.append('filled')</script>"
NO_SANDBOX = (
    "Chromium runs without its sandbox, which it was refused: root never has one, nor have many "
    "containers"
)


class Wrapped:
    """A program in the place of Chromium: writes down how it is started, and may refuse."""

    def __init__(self, folder: Path, *, unless_unsafe: str = "") -> None:
        self.program = folder / "chromium"
        self.log = folder / "starts"
        self.program.write_text(
            "#!/bin/sh\n"
            f'echo "$@" >> {self.log}\n'
            f"env > {folder}/environment\n"
            f'case " $* " in *" --no-sandbox "*) ;; *) {unless_unsafe or ":"} ;; esac\n'
            f'exec {chromium_executable()} "$@"\n'
        )
        self.program.chmod(0o755)

    @property
    def starts(self) -> list[bool]:
        """Whether each start was with the sandbox."""
        return ["--no-sandbox" not in line.split() for line in self.log.read_text().splitlines()]


def said(caplog: pytest.LogCaptureFixture, logger: str) -> list[str]:
    return [record.message for record in caplog.records if record.name == logger]


async def test_the_sandbox_is_tried_first_and_given_up_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chromium = Wrapped(tmp_path, unless_unsafe="echo 'No usable sandbox!' >&2; exit 1")
    with caplog.at_level(logging.WARNING):
        async with open_web(executable=str(chromium.program)) as world:
            world.pub.page("/", PAGE)
            assert (await world.read("http://pub.test/")).endswith("filled")
            (process,) = browser_processes()
            process.kill()
            assert (await world.read("http://pub.test/")).endswith("filled")
    assert chromium.starts == [True, False, False]
    assert said(caplog, "rnow.browser.chromium.process") == [NO_SANDBOX]
    assert said(caplog, "rnow.browser.chromium.source") == [
        "Chromium has ended and is started again"
    ]


async def test_the_sandbox_is_not_given_up_for_any_other_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reason = "error while loading shared libraries: libnss3.so"
    chromium = Wrapped(tmp_path, unless_unsafe=f"echo '{reason}' >&2; exit 127")
    async with open_web(executable=str(chromium.program)) as world:
        for _ in range(2):
            with pytest.raises(NotRenderedError) as failed:
                await world.source.fetch(URL("http://pub.test/"))
            assert failed.value.text == (
                "ERROR unreadable: the browser that this page needs does not start."
            )
    assert chromium.starts == [True]
    (message,) = said(caplog, "rnow.browser.chromium.source")
    assert message.startswith(f"{chromium.program} did not start: ")
    assert reason in message
    assert said(caplog, "rnow.browser.chromium.process") == []


async def test_this_machine_s_chromium_is_asked_for_its_sandbox(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chromium = Wrapped(tmp_path)
    async with open_web(executable=str(chromium.program)) as world:
        world.pub.page("/", PAGE)
        assert (await world.read("http://pub.test/")).endswith("filled")
    was_refused = chromium.starts != [True]
    assert chromium.starts == ([True, False] if was_refused else [True])
    assert said(caplog, "rnow.browser.chromium.process") == ([NO_SANDBOX] if was_refused else [])
    assert was_refused or os.geteuid() != 0  # Chromium itself never gives root one


async def test_chromium_is_told_no_variable_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROJECT_API_KEY", "sk-123")
    monkeypatch.setenv("ANYTHING", "sk-123")
    async with open_web(executable=str(Wrapped(tmp_path).program)) as world:
        world.pub.page("/", PAGE)
        assert (await world.read("http://pub.test/")).endswith("filled")
    environment = (tmp_path / "environment").read_text()
    assert "HOME=" in environment
    assert "sk-123" not in environment


def late_node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have playwright's driver begin once `folder / "go"` is there, longer than it may take."""
    node, _ = compute_driver_executable()
    program = folder / "node"
    program.write_text(
        f"#!/bin/sh\necho $$ >> {folder}/drivers\n"
        f'while [ ! -e {folder}/go ]; do sleep 0.05; done\nexec {node} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PLAYWRIGHT_NODEJS_PATH", str(program))
    monkeypatch.setattr(driver, "_START_TIMEOUT_S", 0.3)
    monkeypatch.setattr(source, "_START_AGAIN_S", 0.0)
    return folder / "go"


async def test_a_driver_that_is_late_is_taken_by_the_next_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = late_node(tmp_path, monkeypatch)
    async with open_web() as world:
        world.pub.page("/", PAGE)
        for _ in range(2):
            with pytest.raises(NotRenderedError):
                await world.source.fetch(URL("http://pub.test/"))
        go.touch()
        monkeypatch.setattr(driver, "_START_TIMEOUT_S", 60.0)
        assert (await world.read("http://pub.test/")).endswith("filled")
    (pid,) = map(int, (tmp_path / "drivers").read_text().split())
    await until(lambda: not is_alive(pid))


async def test_a_driver_that_is_late_ends_with_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = late_node(tmp_path, monkeypatch)
    async with open_web() as world:
        with pytest.raises(NotRenderedError):
            await world.source.fetch(URL("http://pub.test/"))
        go.touch()
    (pid,) = map(int, (tmp_path / "drivers").read_text().split())
    await until(lambda: not is_alive(pid))
