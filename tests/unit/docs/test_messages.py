"""docs/messages.md has what rnow says: by the source, and by messages that were really said."""

import ast
import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from rnow import errors
from rnow.commands.init import init_project
from rnow.config.load import load_config
from rnow.errors import ConfigError, RnowError
from rnow.records import ToolOutcome

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src" / "rnow"
PAGE = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, RnowError)
}
SHORTEST = 10  # letters of a text that says something


def words_of(page: str) -> str:
    return re.sub(r"\\([|<`*\\])", r"\1", page)


@cache
def rows() -> list[re.Pattern[str]]:
    """Each message of the page as what it may look like once its gaps are filled."""
    found = []
    for line in words_of(PAGE).splitlines():
        cause, _, remedy = line.removeprefix("| ").removesuffix(" |").partition(" | ")
        said = f"{cause}{'' if remedy.startswith('*') else f'…{remedy}'}"
        if line.startswith("| ") and len(re.sub(r"[^A-Za-z]+", "", said)) >= SHORTEST:
            text = re.escape(said).replace("…", r"[\s\S]*")
            found.append(re.compile(text.replace(r"\ ", r"\s+")))
    return found


def is_on_page(message: str) -> bool:
    return any(row.search(message) for row in rows())


def script() -> ModuleType:
    file = ROOT / "scripts" / "make_messages_doc.py"
    spec = importlib.util.spec_from_file_location("make_messages_doc", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its records look for their own module
    spec.loader.exec_module(module)
    return module


def test_every_error_has_its_line_and_what_to_do() -> None:
    for name, kind in KINDS.items():
        if kind is not RnowError:
            assert (bool(kind.about), bool(kind.remedy)) == (True, True), name
            row = f"| {name} | {kind.exit_code} | {kind.about} | {kind.remedy} |\n"
            assert row in PAGE, name


def test_what_is_raised_anywhere_is_on_the_page() -> None:
    words = re.sub(r"\s+", " ", words_of(PAGE).replace(" | ", "; "))
    plain = re.sub(r"[^A-Za-z ]+", "", words)
    missing, num_seen = [], 0
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            if not (isinstance(node.exc.func, ast.Name) and node.exc.func.id in KINDS):
                continue
            for argument in node.exc.args:
                parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
                for part in parts:
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        text = re.sub(r"[^A-Za-z ]+", "", re.sub(r"\s+", " ", part.value)).strip()
                        num_seen += len(text) >= SHORTEST
                        if len(text) >= SHORTEST and text not in plain:
                            missing.append(f"{path.name}:{node.lineno}: {part.value}")
    assert missing == [], "python scripts/make_messages_doc.py puts them there"
    assert num_seen > 200


def test_each_package_has_its_section() -> None:
    sections = script().SECTIONS
    places = [place for _, own in sections.values() for place in own]
    assert len(places) == len(set(places))
    tops = {path.relative_to(SOURCE).parts[0] for path in SOURCE.rglob("*.py")}
    assert tops - {"templates", "__init__.py"} == set(places)
    for title in sections:
        assert f"\n## {title}\n" in PAGE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.learning_rat", "1"),
        ("seed", "many"),
        ("rollout.max_turns", "0"),
        ("trainer.save_step", "0"),
        ("browser.local_sites", "{a.test: nowhere}"),
        ("trainer.report_to", "[wandb]"),
    ],
)
def test_what_a_wrong_setting_makes_it_say_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed, wherever this runs
    init_project(tmp_path / "clinic", template="clinic")
    try:
        loaded = load_config(tmp_path / "clinic", overrides=[f"{key}={value}"])
    except ConfigError as error:
        said = str(error)
    else:
        said = "\n".join(str(problem) for problem in loaded.warnings)
    assert said
    assert is_on_page(said), said


def test_what_other_mistakes_make_it_say_is_found(tmp_path: Path) -> None:
    said = []
    for wrong in (
        lambda: load_config(tmp_path),
        lambda: init_project(tmp_path, template="clinics"),
    ):
        with pytest.raises(RnowError) as raised:
            wrong()
        said.append(str(raised.value))
    assert [text for text in said if not is_on_page(text)] == []


def test_a_text_that_nothing_says_is_not_found() -> None:
    assert not is_on_page("The moon is made of green cheese, and so is the student's optimizer.")
    assert ToolOutcome.OK  # nor is a name alone a message
    assert not is_on_page("ok")
