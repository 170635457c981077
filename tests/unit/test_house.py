"""The shape of the code: sizes, directions of imports, heavy imports in their rooms."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "rnow"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if "templates" not in path.parts)

MAX_MODULE_LINES = 350
MAX_FUNCTION_LINES = 80
MAX_LOOP_LINES = 45

# Rooms that may import torch at their top; what they import late is their own business.
TORCH_ROOMS = ("learner/", "engines/local/")


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported_at_top(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_no_module_is_longer_than_one_can_hold_in_mind() -> None:
    long = {
        name_of(path): lines
        for path in MODULES
        if (lines := path.read_text().count("\n")) > MAX_MODULE_LINES
    }
    assert long == {}


def test_no_function_is_longer_than_a_screen() -> None:
    long = {
        f"{name_of(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in MODULES
        for node in functions(ast.parse(path.read_text()))
        if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_the_loop_reads_like_the_algorithm() -> None:
    tree = ast.parse((SOURCE / "training" / "loop.py").read_text())
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    assert len(loops) == 1
    assert (loops[0].end_lineno or 0) - loops[0].lineno <= MAX_LOOP_LINES


def test_torch_is_imported_in_its_rooms_alone() -> None:
    outside = {
        name_of(path)
        for path in MODULES
        if "torch" in imported_at_top(path) and not name_of(path).startswith(TORCH_ROOMS)
    }
    assert outside == set()


def test_crawl4ai_is_imported_by_the_browser_alone() -> None:
    outside = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("crawl4ai"))
        or (
            isinstance(node, ast.Import)
            and any(alias.name.startswith("crawl4ai") for alias in node.names)
        )
    }
    assert {name for name in outside if not name.startswith("browser/")} == set()


def test_every_module_says_what_it_is() -> None:
    for path in MODULES:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no docstring"


def test_no_pickle_is_ever_loaded() -> None:
    # Each of these runs what a file says; what a message names in a string does not.
    modules = {"pickle", "joblib", "shelve", "marshal", "dill", "cloudpickle"}
    found = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names) if modules & {alias.name for alias in names}:
                    found.add(f"{name_of(path)}:{node.lineno}")
                case ast.ImportFrom(module=module) if module in modules:
                    found.add(f"{name_of(path)}:{node.lineno}")
                case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save"):
                    found.add(f"{name_of(path)}:{node.lineno}")
                case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                    found.add(f"{name_of(path)}:{node.lineno}")
    assert found == set()
