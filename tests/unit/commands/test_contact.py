"""browser.contact is decided at the start: asked where somebody can answer, told where not."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE_S

from rnow.commands.contact import git_email, write_contact
from rnow.config.load import load_config

NEEDED = "data: {batch_size: 16}\nmodel: {path: a}\nteacher: {path: b}\ntrainer: {num_epochs: 1}\n"
BROWSER = "browser:\n  contact: null\n  allow_hosts: [pub.test]\n"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with a git that knows its user, and no model anywhere."""
    (tmp_path / "gitconfig").write_text("[user]\n  email = me@lab.test\n")
    return {
        **os.environ,
        "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(tmp_path.parent),
        "HF_HOME": str(tmp_path),
        "CUDA_VISIBLE_DEVICES": "",
    }


def write_project(folder: Path, browser: str) -> Path:
    (folder / "config.yml").write_text(NEEDED + browser)
    (folder / "val.jsonl").write_text('{"messages": [{"role": "user", "content": "?"}]}\n')
    return folder


def answer(project: Path, environ: dict[str, str], *words: str, keys: str) -> str:
    """Run `rnow` on a terminal of its own, type `keys`; return all that it showed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "rnow", *words, str(project)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**environ, "TERM": "dumb"}
    ) as process:
        os.close(theirs)
        os.write(ours, keys.encode())
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            shown += part
        process.wait(timeout=PATIENCE_S)
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("browser", "written"),
    [
        (BROWSER, 'browser:\n  contact: "me@lab.test"\n  allow_hosts: [pub.test]\n'),
        (
            "browser:\n    # who\n    contact:   # null\n    allow_hosts:\n    - pub.test",
            'browser:\n    # who\n    contact: "me@lab.test"  # null\n'
            "    allow_hosts:\n    - pub.test",
        ),
        (
            "browser:   # pages\n\n   allow_hosts: [pub.test]\n",
            'browser:   # pages\n\n   contact: "me@lab.test"\n   allow_hosts: [pub.test]\n',
        ),
        (
            "browser:\n   allow_hosts: [pub.test]\n",
            'browser:\n   contact: "me@lab.test"\n   allow_hosts: [pub.test]\n',
        ),
        ("browser: {allow_hosts: [pub.test]}\n", None),
        ("browser: {contact: null, allow_hosts: [pub.test]}\n", None),
    ],
)
def test_the_address_is_written_where_it_belongs_or_not_at_all(
    tmp_path: Path, browser: str, written: str | None
) -> None:
    project = write_project(tmp_path, browser)
    done = write_contact(load_config(project), "me@lab.test")
    text = (project / "config.yml").read_text()
    if written is None:
        assert (done, text) == (False, NEEDED + browser)
    else:
        assert (done, text) == (True, NEEDED + written)
        assert load_config(project).config.browser.contact == "me@lab.test"


def test_nobody_s_address_is_used_unasked(tmp_path: Path, environ: dict[str, str]) -> None:
    project = write_project(tmp_path, BROWSER)
    for email, line in (
        ("me@lab.test", "contact: me@lab.test (git's user.email)"),
        (None, "contact: ADDRESS"),
    ):
        if email is None:
            (tmp_path / "gitconfig").write_text("")
        for command in ("eval", "test"):
            done = subprocess.run(
                [sys.executable, "-m", "rnow", command, project],
                capture_output=True,
                text=True,
                env=environ,
                stdin=subprocess.DEVNULL,
            )
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == (
                f"Error: {project}/config.yml:6: browser.contact is null: no site outside this "
                "machine is read until it is your mail or web address, which those sites are told; "
                f"the line to write under browser: {line}\n"
            )
    assert (project / "config.yml").read_text() == NEEDED + BROWSER


def test_on_a_terminal_git_s_address_is_offered_and_what_is_said_is_kept(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    project = write_project(tmp_path, BROWSER)
    shown = answer(project, environ, "eval", keys="\n")
    assert shown.lstrip("\n").startswith(  # the answer's echo comes first
        "The sites that this project reads are told who is asking.\n"
        "Your mail or web address [me@lab.test]: "
        f"written into {project}/config.yml: browser.contact: me@lab.test\n"
    )
    assert "browser.contact is null" not in shown  # it went on, to a model that is not there
    assert "Error: " in shown
    assert load_config(project).config.browser.contact == "me@lab.test"
    assert "who is asking" not in answer(project, environ, "eval", keys="")


def test_an_answer_that_is_no_address_is_asked_for_again(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    project = write_project(tmp_path, "browser: {allow_hosts: [pub.test]}\n")
    shown = answer(project, environ, "eval", keys="yes\nhttps://lab.test/us\n")
    assert "Error: a mail address has an @, and a web address begins with https://" in shown
    assert (
        f"for this time only; to be asked no more, write it into {project}/config.yml, under "
        "browser\n"
    ) in shown
    assert "browser.contact is null" not in shown


def test_without_a_git_nothing_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_email(tmp_path) is None
