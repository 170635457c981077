"""`rnow browse`: what it prints is what a run's model gets."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import serve_pub
from processes import PATIENCE_S

from rnow.commands.init import init_project


def rnow(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rnow", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The clinic, with two pages of its own."""
    folder = tmp_path / "clinic"
    init_project(folder, template="clinic")
    shutil.rmtree(folder / "models" / "teacher")
    (folder / "site" / "short.html").write_text("<h1>Short</h1><p>text &lt;|im_end|&gt;")
    lines = "".join(f"<p>line {number}</p>" for number in range(200))
    (folder / "site" / "long.html").write_text(lines)
    return folder


def test_a_page_is_printed_as_the_model_gets_it(project: Path) -> None:
    done = rnow("browse", "https://clinic.test/short?a=b", "--dir", project)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "https://clinic.test/short?a=b (status 200, page 1 of 1)\n\n# Short\ntext <|im_end|>\n"
    )


def test_a_long_page_comes_in_parts_of_the_student_s_tokens(project: Path) -> None:
    url, cap = "https://clinic.test/long", "rollout.max_tool_response=150"
    first = rnow("browse", url, cap, "-d", project).stdout
    second = rnow("browse", url, cap, "-d", project, "--page", 2).stdout
    assert first.endswith("[Continues: browse(url, page=2)]\n")
    assert second.startswith(f"{url} (status 200, page 2 of ")
    last_of_first = first.splitlines()[-2]
    next_line = f"line {int(last_of_first.split()[1]) + 1}"
    assert second.splitlines()[2] == next_line


def test_json_says_how_the_page_was_got(project: Path) -> None:
    words = ("https://clinic.test/short", "-d", project, "--json", "browser.store_mode=record")
    first, second = (json.loads(rnow("browse", *words).stdout) for _ in range(2))
    assert first["ms"] > 0
    assert {name: value for name, value in first.items() if name != "ms"} == {
        "text": "https://clinic.test/short (status 200, page 1 of 1)\n\n# Short\ntext <|im_end|>",
        "code": "ok",
        "url": "https://clinic.test/short",
        "source": "http",
        "cache": "none",
    }
    assert (second["cache"], second["text"]) == ("store", first["text"])
    # One source alone passes the store by.
    past = json.loads(rnow("browse", *words, "--source", "http").stdout)
    assert (past["source"], past["cache"]) == ("http", "none")


def test_a_page_can_be_read_by_chromium_alone(project: Path) -> None:
    (project / "site" / "script.html").write_text(
        "<p id=a>before</p><script>document.getElementById('a').textContent = 'after'</script>"
    )
    url = "https://clinic.test/script"
    seen = {
        source: json.loads(rnow("browse", url, "-d", project, "--json", "--source", source).stdout)
        for source in ("http", "browser")
    }
    assert [seen[source]["text"].split("\n")[-1] for source in seen] == ["before", "after"]
    assert [seen[source]["source"] for source in seen] == ["http", "browser"]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (
            "https://evil.test/?q=secret",
            "ERROR host_not_allowed: this host is not on the list of sites that may be read.",
        ),
        ("https://clinic.test/none", "ERROR http_404: the site answered with status 404."),
        (
            "file:///etc/passwd",
            "ERROR bad_url: a URL must start with http:// or https:// and name a host.",
        ),
    ],
)
def test_where_there_is_no_page_the_exit_code_says_so(project: Path, url: str, text: str) -> None:
    done = rnow("browse", url, "-d", project)
    assert (done.returncode, done.stdout, done.stderr) == (1, f"{text}\n", "")
    described = json.loads(rnow("browse", url, "-d", project, "--json").stdout)
    assert described["code"] == text.split()[1].rstrip(":")
    assert (described["url"], described["source"], described["cache"]) == (None, None, None)


def test_without_the_tokenizer_it_is_said_how_pages_are_cut(project: Path) -> None:
    words = ("model.path=Some/Model", "rollout.max_tool_response=50")
    done = rnow("browse", "https://clinic.test/long", *words, "-d", project)
    assert done.returncode == 0
    assert (
        "the tokenizer of Some/Model is not on this machine: pages are cut at 200 characters, "
        "not at 50 tokens\n"
    ) in done.stderr
    assert len(done.stdout) <= 201


def test_a_cap_that_only_a_few_words_keep_is_kept(project: Path) -> None:
    words = ("model.path=Some/Model", "rollout.max_tool_response=10")
    done = rnow("browse", "https://clinic.test/long", *words, "-d", project)
    assert (done.returncode, len(done.stdout)) == (0, 41)
    described = rnow("browse", "https://clinic.test/long", *words, "-d", project, "--json")
    assert (described.returncode, described.stdout) == (2, "")
    assert described.stderr.splitlines()[-1] == (
        "Error: the worker's answer to 'describe' is longer than a tool's may be: raise "
        "rollout.max_tool_response"
    )


async def test_a_server_of_ones_own_can_be_looked_at(project: Path) -> None:
    import asyncio

    async with serve_pub() as pub:
        pub.page("/", "<p>own")
        done = await asyncio.to_thread(
            rnow, "browse", "http://own.test/", "-d", project,
            f"browser.local_sites={{own.test: '127.0.0.1:{pub.port}'}}",
        )  # fmt: skip
    assert done.stdout == "http://own.test/ (status 200, page 1 of 1)\n\nown\n"
