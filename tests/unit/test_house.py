"""The shape of the code: sizes, the one direction of imports, heavy imports in their rooms.

An import counts wherever it stands: at the top, inside a function, under TYPE_CHECKING. What needs
another's types depends on it.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from rnow.config.keys import settings_by_key

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "rnow"
MODULES = sorted(path for path in SOURCE.rglob("*.py") if "templates" not in path.parts)

MAX_SOURCE_LINES = 41_789  # templates and all; it goes up with what rnow can do, not with habit
MAX_MODULE_LINES = 330
MAX_FUNCTION_LINES = 60
MAX_FUNCTION_LINES_P95 = 30
MAX_LOOP_LINES = 45

# A room imports from rows above its own alone; two rooms in a row do not know each other. `rnow`
# itself is its version and nothing else.
LAYERS = (
    {"rnow", "errors", "records"},
    {"core", "runtime", "config"},
    {"networks"},
    {"browser", "engines", "learner"},
    {"tools", "plan"},
    {"cluster", "chat"},
    {"rollout"},
    {"runs"},
    {"evaluation"},
    {"training"},
    {"reports"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
# A bare gather leaves the others running where one fails, and whoever waits for it is cancelled:
# elsewhere runtime/side_by_side.py does it. These wait for what is left, or have errors returned.
GATHERERS = {"engines/vllm/starting.py", "tools/mcp/tools.py", "tools/pool.py"}
# A command's signals are heard by run_main alone; a worker runs what a user wrote.
LOOP_RUNNERS = {"runtime/main_task.py", "tools/graders.py"}
# Outside the order: a second name for users, and the medicine, which uses what a project may use.
SIDE_ROOMS = {"models": {"core"}, "medbrowse": {"core", "browser"}}
LOOSE_FILES = {
    "__init__.py",
    "__main__.py",
    "cli.py",
    "errors.py",
    "models.py",
    "py.typed",
    "records.py",
}

TORCH_ROOMS = ("learner/", "engines/local/")
PRINTING_ROOMS = ("commands/", "runtime/console.py")
PRINTING_ELSEWHERE = {
    # What ends a command becomes a line and an exit code here; --version prints before any starts.
    "cli.py:_show_version",
    "cli.py:_error_console",
    "cli.py:main",
    # A log that cannot be written has nowhere else to say so.
    "runtime/logs.py:handleError",
    # Programs of child processes: their output is a pipe, or a log.
    "browser/text/pdf.py:main",
    "tools/runner.py:_fail",
}


# A parameter that has a setting's name and default, and is not the setting.
NO_SETTINGS = {
    "browser/settings.py:BrowserSettings.store_mode",  # without a store nothing else is possible
}


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def dotted_name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
DOTTED_NAMES = {dotted_name_of(path) for path in MODULES}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything imported; a name inside a module is that module."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for alias in names:
                    whole = f"{module}.{alias.name}"
                    yield whole if whole in DOTTED_NAMES else module


def named_modules(tree: ast.AST) -> Iterator[str]:
    """Yield the modules whose names stand in texts: so programs of child processes are started."""
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if node not in docstrings:
                names = re.findall(r"\brnow(?:\.\w+)+", text)
                yield from (name for name in names if name in DOTTED_NAMES)


def importers_of(*packages: str) -> set[str]:
    return {
        name_of(path)
        for path, tree in TREES.items()
        if any(name.split(".")[0] in packages for name in imports(tree))
    }


def room_of(dotted: str) -> str:
    """Return the room of a module of ours: "chat" for `rnow.chat.template`, "rnow" for `rnow`."""
    return dotted.split(".")[1] if "." in dotted else dotted


def imports_between_rooms() -> Iterator[tuple[str, str]]:
    """Yield (module, what it imports or names) for each import of one room by another."""
    for path, tree in TREES.items():
        module = dotted_name_of(path)
        for name in sorted({*imports(tree), *named_modules(tree)}):
            if name.split(".")[0] == "rnow" and room_of(module) != room_of(name):
                yield module, name


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def defaults(tree: ast.AST) -> Iterator[tuple[str, str, Any]]:
    """Yield (owner, name, value) of each default of a parameter or field that is a literal."""
    pairs: list[tuple[str, str, ast.expr | None]] = []
    for node in functions(tree):
        named = [*node.args.posonlyargs, *node.args.args]
        given = [None] * (len(named) - len(node.args.defaults)) + node.args.defaults
        both = zip(named + node.args.kwonlyargs, given + node.args.kw_defaults, strict=True)
        pairs += [(node.name, name.arg, value) for name, value in both]
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            fields = (one for one in node.body if isinstance(one, ast.AnnAssign))
            pairs += [(node.name, ast.unparse(one.target), one.value) for one in fields]
    for owner, name, value in pairs:
        with suppress(ValueError):  # no literal
            if value is not None:
                yield owner, name, ast.literal_eval(value)


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def prints(node: ast.AST) -> bool:
    """Say whether this very node writes to the terminal, or opens a way to."""
    match node:
        case ast.Call(func=ast.Name(id="print" | "Console" | "echo" | "secho")):
            return True
        case ast.Call(func=ast.Attribute(attr="print" | "Console" | "echo" | "secho")):
            return True
        case ast.Attribute(
            value=ast.Name(id="sys"), attr="stdout" | "stderr" | "__stdout__" | "__stderr__"
        ):
            return True
    return False


def test_imports_point_one_way() -> None:
    layer_of = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}

    def is_allowed(room: str, imported: str) -> bool:
        if room in SIDE_ROOMS:
            return imported in SIDE_ROOMS[room]
        return imported in layer_of and layer_of[imported] < layer_of[room]

    against = {
        f"{module} imports {name}"
        for module, name in imports_between_rooms()
        if not is_allowed(room_of(module), room_of(name))
    }
    assert against == set()


def test_the_medicine_stands_in_its_own_room_alone() -> None:
    medicine = re.compile(
        r"NCT[0-9(\[]|orange_?book|drugs_?at_?fda|clinicaltrials|\bfda\b|Not_Listed"
    )
    found = {
        name.parts[0]
        for path in SOURCE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
        for name in [path.relative_to(SOURCE)]
        if medicine.search(path.read_text(encoding="utf-8", errors="replace"))
    }
    assert found == {"medbrowse", "templates"}


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {room_of(dotted_name_of(path)) for path in MODULES}
    assert rooms == set().union(*LAYERS) | SIDE_ROOMS.keys()


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        dotted_name_of(path): {name for name in imports(tree) if name in DOTTED_NAMES}
        for path, tree in TREES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def users_of(name: str) -> set[str]:
    """Return the modules that use something of asyncio's."""
    return {
        name_of(path)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) == f"asyncio.{name}"
    }


def test_no_work_is_left_behind_by_a_gather() -> None:
    assert users_of("gather") == GATHERERS


def test_every_command_hears_signals_in_one_way() -> None:
    assert users_of("run") == LOOP_RUNNERS


def test_all_imports_are_absolute() -> None:
    relative = {
        f"{name_of(path)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    }
    assert relative == set()


def test_programs_in_strings_import_what_is_there() -> None:
    # No type checker looks into the programs that tests write for other processes.
    packages = {path.parent for path in MODULES}
    there = DOTTED_NAMES | {dotted_name_of(package / "__init__.py") for package in packages}
    lost = {
        f"{path.relative_to(ROOT)}: {name}"
        for folder in ("src", "tests", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"\b(?:from|import) (rnow(?:\.\w+)+)", path.read_text("utf-8"))
        if name not in there and not name.startswith("rnow.templates.")
    }
    assert lost == set()


def test_nothing_stands_loose_beside_the_packages() -> None:
    assert {path.name for path in SOURCE.iterdir() if path.is_file()} == LOOSE_FILES


def test_every_folder_of_modules_is_a_package() -> None:
    # An installed rnow has no other folders; and what git ignores is on one machine alone.
    for folder in {path.parent for path in MODULES}:
        assert (folder / "__init__.py").is_file(), f"{name_of(folder)} has no __init__.py"
    if (ROOT / ".git").exists():
        asked = ["git", "check-ignore", "--no-index", *MODULES]
        assert subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout == ""


def test_no_module_is_longer_than_one_can_hold_in_mind() -> None:
    long = {
        name_of(path): lines
        for path in MODULES
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MAX_MODULE_LINES
    }
    assert long == {}


def test_the_drawing_of_the_order_is_the_order() -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    drawn = page[page.index("    errors, records ←") :].split("\n\n")[0]
    rows = [{name.strip() for name in row.split(",")} for row in drawn.split("←")]
    assert rows == [set(row) - {"rnow"} for row in LAYERS if row != {"__main__"}]
    told = set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE))
    packages = {file.parent.name for file in SOURCE.glob("*/__init__.py")}
    assert packages - {"templates"} <= told


def test_all_of_it_can_be_read_in_a_week() -> None:
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in SOURCE.rglob("*.py"))
    assert lines <= MAX_SOURCE_LINES


def test_no_function_is_longer_than_a_screen() -> None:
    long = {
        f"{name_of(path)}:{node.name}": lines_of(node)
        for path, tree in TREES.items()
        for node in functions(tree)
        if lines_of(node) > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_of_twenty_functions_nineteen_are_short() -> None:
    lines = sorted(lines_of(node) for tree in TREES.values() for node in functions(tree))
    assert lines[len(lines) * 95 // 100] <= MAX_FUNCTION_LINES_P95


def test_the_loop_reads_like_the_algorithm() -> None:
    tree = TREES[SOURCE / "training" / "loop.py"]
    stages = {
        "parts.publisher.publish": "publish",
        "parts.evaluate": "evaluate",
        "parts.teacher.check_health": "health",
        "parts.collector.collect": "collect",
        "ahead.begin": "begin",
        "ahead.rolled": "roll",
        "ahead.batch": "collect",
        "_learn": "learn",
        "parts.trainer.update": "update",
        "parts.save": "save",
    }

    def in_order(node: ast.AST) -> list[str]:
        used = [one for one in ast.walk(node) if isinstance(one, ast.Attribute | ast.Name)]
        used.sort(key=lambda one: (one.end_lineno, one.end_col_offset))
        return [stages[text] for one in used if (text := ast.unparse(one)) in stages]

    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    assert [in_order(loop) for loop in loops] == [
        ["publish", "evaluate", "health", "collect", "learn"],
        ["publish", "roll", "evaluate", "health", "begin", "collect", "learn"],
    ]
    (learn,) = [node for node in functions(tree) if node.name == "_learn"]
    assert in_order(learn) == ["update", "save"]
    assert all(lines_of(loop) <= MAX_LOOP_LINES for loop in loops)
    assert not [node for node in ast.walk(tree) if prints(node)]


def test_the_default_of_a_setting_stands_in_the_settings_alone() -> None:
    by_name: dict[str, list[Any]] = {}
    for key, field in settings_by_key().items():
        # None, 0 and what is empty say that nothing is wanted: they are nobody's number.
        if field.default is False or field.default:
            by_name.setdefault(key.rpartition(".")[2], []).append(field.default)
    twice = {
        f"{name_of(path)}:{owner}.{name}"
        for path, tree in TREES.items()
        if name_of(path) != "config/settings.py"
        for owner, name, value in defaults(tree)
        if any(value == one for one in by_name.get(name, ()))
    }
    assert twice == NO_SETTINGS


def test_torch_is_imported_in_its_rooms_alone() -> None:
    users = importers_of("torch", "peft")
    assert {name for name in users if not name.startswith(TORCH_ROOMS)} == set()
    assert all(any(name.startswith(room) for name in users) for room in TORCH_ROOMS)


def test_crawl4ai_is_imported_by_the_browser_alone() -> None:
    users = importers_of("crawl4ai", "playwright")
    assert users
    assert {name for name in users if not name.startswith("browser/")} == set()


def test_commands_alone_print() -> None:
    places = set()
    for path, tree in TREES.items():
        if not name_of(path).startswith(PRINTING_ROOMS):
            inside = dict.fromkeys(ast.walk(tree), "")
            for function in functions(tree):  # from outside in: the innermost name stays
                inside |= dict.fromkeys(ast.walk(function), function.name)
            places |= {f"{name_of(path)}:{inside[node]}" for node in inside if prints(node)}
    assert places == PRINTING_ELSEWHERE


def test_the_tools_of_a_project_bring_no_model_with_them(tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(
        "import rnow.models\n"
        "from rnow import browser\n"
        "from rnow.core import tool\n"
        "@tool\n"
        "async def browse(url: str) -> str:\n"
        "    'Read a page.'\n"
        "    return await browser.read(url)\n"
    )
    program = "import sys, tools; print(sorted({'torch', 'transformers', 'vllm'} & {*sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_every_module_says_what_it_is() -> None:
    for path, tree in TREES.items():
        assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"


def test_no_pickle_is_ever_loaded() -> None:
    # Each of these runs what a file says; what a message names in a string does not.
    modules = {"pickle", "joblib", "shelve", "marshal", "dill", "cloudpickle"}
    found = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
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
