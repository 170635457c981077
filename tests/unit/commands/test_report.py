"""`rnow report --open`: a browser is called with the page; where none is, the page is said."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from short_runs import rnow

from rnow.runs.folder import RunDirectory

BROWSER = '#!/bin/sh\necho "$1" >> "{told}"\nexit {status}\n'
BARE = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    opened = RunDirectory(tmp_path / "runs" / "one two")
    opened.open()
    opened.write_config({"dataset_type": "distill"})
    opened.write_state(step=0, num_steps=2, finished=False)
    opened.close()
    return opened.path


def make_browser(folder: Path, *, status: int = 0) -> Path:
    script = folder / "browser"
    script.write_text(BROWSER.format(told=folder / "told", status=status))
    script.chmod(0o755)
    return script


def test_the_users_browser_is_called_with_the_page(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROWSER", str(make_browser(tmp_path)))
    page = run / "report.html"
    assert rnow("report", run, "--open").stdout == (
        f"{page}: {page.stat().st_size / 1e6:.1f} MB, opens without a network\n"
    )
    assert (tmp_path / "told").read_text() == f"{page.as_uri()}\n"


@pytest.mark.parametrize("browser", [None, "none", "failing"])
def test_where_no_browser_opens_the_page_is_named_and_what_to_do(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: str | None
) -> None:
    for name in BARE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # without text browsers of this machine
    if browser is not None:
        failing = make_browser(tmp_path, status=1)
        monkeypatch.setenv("BROWSER", str(failing if browser == "failing" else tmp_path / "none"))
    page = run / "report.html"
    assert rnow("report", run, "--open").stdout.splitlines()[1:] == [
        f"no web browser could be opened here; open {page} yourself, or copy it to your own "
        f"machine: scp '{socket.gethostname()}:{page}' ."
    ]


def test_a_project_is_given_for_all_of_its_runs_and_is_no_run_itself(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.yml").write_text("dataset_type: distill\n")
    assert rnow("report", tmp_path).stdout.startswith(f"{run}/report.html: ")
    assert not (tmp_path / "report.html").exists()
    said = f"{run}: not running; 0 of 2 steps are saved. To go on: rnow run {tmp_path} --name "
    for folder in (tmp_path, run):
        assert rnow("status", folder).stdout == f"{said}'one two'\n"
    (run / "state.json").rename(tmp_path / "away")
    failed = rnow("report", tmp_path, check=False)
    assert (failed.returncode, failed.stderr) == (
        2,
        f"Error: {tmp_path} is not a run's folder; to see them: rnow status\n",
    )


def test_served_it_is_opened_while_it_is_served_until_ctrl_c(run: Path, tmp_path: Path) -> None:
    # This one reads the page before it returns, as browsers in the foreground do.
    script = tmp_path / "browser"
    script.write_text(
        f"#!{sys.executable}\nimport sys, urllib.request\n"
        "print(urllib.request.urlopen(sys.argv[1]).status, flush=True)\n"
    )
    script.chmod(0o755)
    words = [sys.executable, "-m", "rnow", "report", str(run), "--serve", "--open"]
    environ = {**os.environ, "BROWSER": str(script), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        assert served.stdout.readline().endswith("/ until Ctrl-C\n")
        assert served.stdout.readline() == "200\n"
        served.send_signal(signal.SIGINT)
        assert served.wait() == 130
    assert not (run / "report.html").exists()
