"""What other people's files import: four packages say it whole, no other module has a list."""

import ast
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import rnow
import rnow.browser
import rnow.core
import rnow.models

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "rnow"
PUBLIC = [rnow, rnow.core, rnow.browser, rnow.models]


def names_there(module: ModuleType) -> set[str]:
    """Return what a module defines or takes from a module of ours: not what it needs for itself."""
    names = set()
    for node in ast.parse(inspect.getsource(module)).body:
        match node:
            case ast.ImportFrom(module=str(source)) if source.startswith("rnow."):
                names |= {alias.asname or alias.name for alias in node.names}
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Assign(targets=targets):
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return {name for name in names if not name.startswith("_") or name == "__version__"}


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_the_list_is_what_is_there(module: ModuleType) -> None:
    assert set(module.__all__) == names_there(module)
    assert len(module.__all__) == len(set(module.__all__))


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_every_member_is_documented(module: ModuleType) -> None:
    callables = {name for name in module.__all__ if callable(getattr(module, name))}
    assert {name for name in callables if not getattr(module, name).__doc__} == set()


@pytest.mark.parametrize("module", PUBLIC, ids=lambda module: module.__name__)
def test_the_table_for_users_names_every_member(module: ModuleType) -> None:
    tools_doc = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{re.escape(module.__name__)}` \| (.*) \|$", tools_doc, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == set(module.__all__)


def test_no_inner_module_has_a_list() -> None:
    public = {Path(module.__file__ or "") for module in PUBLIC}
    others = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if path not in public and re.search(r"^__all__\b", path.read_text(), re.MULTILINE)
    }
    assert others == set()
