"""`rnow corpus`: build, stop, go on, look, verify, and read without the sites."""

import asyncio
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from loopback import Pub, serve_pub
from processes import PATIENCE_S

CONFIG = """\
data: {{batch_size: 1}}
model: {{path: a}}
teacher: {{path: b}}
trainer: {{num_epochs: 1}}
browser:
  local_sites: {{pub.test: '127.0.0.1:{port}', clinicaltrials.gov: '127.0.0.1:{port}'}}
"""
STUDY = '{"protocolSection": {"identificationModule": {"nctId": "NCT90000001"}}}'


def rnow(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rnow", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


async def run(*words: object) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(rnow, *words)


@pytest.fixture
async def pub() -> AsyncIterator[Pub]:
    async with serve_pub() as site:
        yield site


@pytest.fixture
def project(tmp_path: Path, pub: Pub) -> Path:
    """Four prompts about four pages: two that are there, one that is not, one that fails."""
    (tmp_path / "config.yml").write_text(CONFIG.format(port=pub.port))
    (tmp_path / "tools.py").write_text("import rnow.medbrowse\n")
    pub.page("/page", "<h1>Page</h1>")
    pub.page("/api/v2/studies/NCT90000001", STUDY, content_type="application/json")
    pub.pages["/broken"] = lambda _: web.Response(status=500)
    texts = (
        *("What is NCT90000001?", "See https://pub.test/page.", "See https://pub.test/none"),
        *("See https://pub.test/broken", "See https://evil.test/?key=1"),
    )
    lines = [json.dumps({"messages": [{"role": "user", "content": text}]}) for text in texts]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    return tmp_path


async def test_a_corpus_is_built_gone_on_with_and_read_without_the_sites(
    project: Path, pub: Pub
) -> None:
    built = await run("corpus", "build", project)
    assert built.returncode == 1, built.stderr
    assert built.stdout.splitlines() == [
        "left out, not in browser.allow_hosts: evil.test (1)",
        "4 pages, 0 of them in pages already; 4 to fetch: about 3 s at the pace of their sites",
        "       2 ok",
        "       1 http_404",
        "       1 http_500",
        "  http_500: https://pub.test/broken",
        "1 pages may come later: the same command tries them again",
        f"To train on these pages alone: rnow run {project} browser.store_mode=replay",
    ]
    # What may come later was asked for three times.
    assert Counter(request.path for request in pub.requests) == {
        "/page": 1,
        "/none": 1,
        "/broken": 3,
        "/api/v2/studies/NCT90000001": 1,
    }
    pub.requests.clear()
    pub.page("/broken", "<p>mended")
    again = await run("corpus", "build", project, "--json")
    assert json.loads(again.stdout) == {"counts": {"ok": 1}, "unfinished": []}
    assert again.returncode == 0
    assert [request.path for request in pub.requests] == ["/broken"]
    pub.requests.clear()
    study = await run(
        "browse", "https://clinicaltrials.gov/study/NCT90000001", "-d", project,
        "browser.store_mode=replay",
    )  # fmt: skip
    assert study.stdout.endswith("\n\n# NCT90000001\n\nClinicalTrials.gov ID: NCT90000001\n")
    other = await run(
        "browse", "https://pub.test/other", "-d", project, "browser.store_mode=replay"
    )
    assert other.stdout == (
        "ERROR not_in_corpus: this page was not recorded; "
        "only pages of the corpus can be read here.\n"
    )
    assert pub.requests == []


async def test_what_a_corpus_holds_is_told_and_damage_is_found_and_mended(project: Path) -> None:
    await run("corpus", "build", project)
    described = json.loads((await run("corpus", "info", project, "--json")).stdout)
    assert {name: described[name] for name in ("pages", "errors", "by_host", "by_source")} == {
        "pages": 2,
        "errors": 1,
        "by_host": {"pub.test": 2, "clinicaltrials.gov": 1},
        "by_source": {"http": 2, "clinicaltrials": 1},
    }
    assert described["bytes"] == len(STUDY) + len("<h1>Page</h1>")
    assert len(described["hash"]) == 64
    whole = await run("corpus", "verify", project)
    assert (whole.returncode, whole.stdout) == (0, "3 pages, whole\n")
    for blob in (project / "pages" / "blobs").glob("*/*.zst"):
        blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    damaged = await run("corpus", "verify", project)
    assert (damaged.returncode, damaged.stdout) == (
        1,
        "damaged: https://clinicaltrials.gov/study/NCT90000001\n"
        "damaged: https://pub.test/page\n"
        "3 pages, 2 damaged; rnow corpus build gets them again\n",
    )
    await run("corpus", "build", project)
    assert (await run("corpus", "verify", project)).returncode == 0


async def test_without_a_store_or_without_pages_the_message_says_what_to_do(
    project: Path,
) -> None:
    for command in ("info", "verify"):
        done = await run("corpus", command, project)
        assert done.returncode == 1
        assert done.stderr.startswith("Error: browser.store pages holds no pages; fill it with ")
    line = json.dumps({"messages": [{"role": "user", "content": "https://evil.test/"}]})
    (project / "train.jsonl").write_text(line)
    done = await run("corpus", "build", project)
    assert (done.returncode, done.stderr) == (
        1,
        "Error: the prompts name no page of a host in browser.allow_hosts or browser.local_sites "
        "(hosts named: evil.test); add hosts there, or pages with --urls or --from-run\n",
    )


async def test_sites_are_not_asked_without_a_contact(project: Path) -> None:
    done = await run("corpus", "build", project, "browser.allow_hosts=[pub.test]")
    assert done.returncode == 1
    assert "browser.contact is null" in done.stderr


async def test_a_finder_of_the_documentation_names_pages_at_the_pace_of_their_site(
    project: Path, pub: Pub
) -> None:
    text = (Path(__file__).parents[2] / "docs/browsing.md").read_text()
    (block,) = re.findall(r"```python\n([^`]*@browser.page_finder[^`]*)```", text)
    pace = "browser.pace('registry.test', interval_s=2.5)\n"
    (project / "tools.py").write_text(f"from rnow import browser\n{block}\n{pace}")
    message = {"role": "user", "content": "Compare T-7 and T-8."}
    (project / "train.jsonl").write_text(json.dumps({"messages": [message]}))
    pub.page("/trial/7", "<p>seven")
    pub.page("/trial/8", "<p>eight")
    (project / "config.yml").write_text(
        CONFIG.format(port=pub.port).replace("clinicaltrials.gov", "registry.test")
    )
    built = await run("corpus", "build", project)
    assert (built.returncode, built.stderr) == (0, "")
    assert built.stdout.splitlines()[:2] == [
        "2 pages, 0 of them in pages already; 2 to fetch: about 5 s at the pace of their sites",
        "       2 ok",
    ]
    assert {request.path for request in pub.requests} == {"/trial/7", "/trial/8"}


async def test_a_finder_that_fails_ends_the_build_before_anything_is_fetched(
    project: Path, pub: Pub
) -> None:
    (project / "tools.py").write_text(
        "from rnow import browser\n\n@browser.page_finder\ndef trials(text):\n"
        "    return [text.split('T-')[1]]\n"
    )
    done = await run("corpus", "build", project)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "Error: tools.py:3: page finder 'trials' failed: IndexError: list index out of range; mend "
        "it, or remove it\n",
    )
    assert pub.requests == []


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("browse", "import math\nraise SystemExit('no')\n", "tools.py:2: SystemExit: no"),
        ("corpus build", "def browse(:\n", "tools.py:1: invalid syntax"),
        (
            "browse",
            "import nowhere_to_be_found\n",
            "tools.py:1: ModuleNotFoundError: No module named 'nowhere_to_be_found'; install it in "
            "the environment that rnow runs in",
        ),
    ],
)
async def test_a_tools_py_that_cannot_be_imported_is_not_passed_over(
    project: Path, pub: Pub, command: str, text: str, said: str
) -> None:
    (project / "tools.py").write_text(text)
    words = ["browse", "https://pub.test/page", "-d"] if command == "browse" else command.split()
    done = await run(*words, project)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        f"Error: {said}; it says how pages are read (adapters, paces): mend it, or move it away\n",
    )
    assert pub.requests == []
