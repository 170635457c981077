"""What a document names is there: files, links, and the tests that are to show a promise."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("src", "tests", "scripts", "docs")
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
NAMES = {path.name for path in [*FILES, *ROOT.iterdir()]} | {"rewards.py"}  # users write that one
TESTS = {
    path: set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))
    for path in FILES
    if path.name.startswith("test_") and path.suffix == ".py"
}

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def is_there(path: str) -> bool:
    """Say whether a path of this repository, or of the package in it, exists."""
    return (ROOT / path).exists() or (ROOT / "src" / "rnow" / path).exists()


@documents
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    in_folders = set(re.findall(r"(?<![\w./~-])(?:src|tests|scripts|docs)/[\w./-]*[\w/]", text))
    modules = set(re.findall(r"(?<![\w./~-])(?:\w+/)+\w+\.py\b", text))
    assert {path for path in in_folders | modules if not is_there(path)} == set()
    assert set(re.findall(r"(?<![\w./-])\w+\.py\b", text)) - NAMES == set()


@documents
def test_every_link_leads_somewhere(document: Path) -> None:
    links = set(re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", document.read_text(encoding="utf-8")))
    assert {link for link in links if not (document.parent / link).exists()} == set()


@documents
def test_every_test_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    anywhere = set().union(*TESTS.values())
    assert set(re.findall(r"[`:](test_\w+)`", text)) - anywhere == set()
    for path, name in re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", text):
        assert name in TESTS[ROOT / path], f"{path} has no {name}"


def test_every_promise_names_files_that_show_it() -> None:
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*) \| (.*) \|$", text, re.MULTILINE)[1:]
    assert len(rows) > 30
    for promise, shown_by in rows:
        assert re.fullmatch(r"`tests/[\w/]+\.py`(, `tests/[\w/]+\.py`)*", shown_by), promise


def test_every_threat_names_tests_that_show_it() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert len(set(re.findall(r"`(test_\w+)`", text))) > 30
