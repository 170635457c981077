"""A machine that has no Chromium: told once, when a run starts, and everything else works."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rnow.browser.chromium.executable import NO_CHROMIUM
from rnow.commands.init import init_project


@pytest.mark.skipif(os.path.isdir("/Applications"), reason="macOS may have a browser anyway")
@pytest.mark.slow
def test_a_run_without_any_chromium_says_so_once_and_reads_by_plain_http(tmp_path: Path) -> None:
    folder = tmp_path / "clinic"
    init_project(folder, template="clinic")
    settings = ("data.batch_size=2", "data.group_size=2", "trainer.max_steps=2", "tools.workers=2")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "rnow", "run", folder, "--name", "bare", *settings),
            "browser.render_hosts=[clinic.test]",
        ],
        env={
            **os.environ,
            "PATH": str(tmp_path / "bin"),
            "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path / "browsers"),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    printed = " ".join((done.stdout + done.stderr).split())
    assert printed.count(NO_CHROMIUM) == 1
    lines = map(json.loads, (folder / "runs/bare/metrics.jsonl").read_text().splitlines())
    counts = [{k: v for k, v in line.items() if k.startswith("browser/")} for line in lines]
    assert all(each["browser/fetched"] > 0 for each in counts)
    assert not any(name.startswith("browser/error_un") for each in counts for name in each)
