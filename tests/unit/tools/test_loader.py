import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from rnow.core import TOOL_REGISTRY, clear_tool_registry
from rnow.errors import ToolDefinitionError
from rnow.tools.base import ToolSchema, ToolSpec
from rnow.tools.loader import load_tools, sandbox_notices


@pytest.fixture(autouse=True)
def _untouched_interpreter() -> Iterator[None]:
    # Loading is for processes of their own; here it has to be undone.
    path = list(sys.path)
    modules = set(sys.modules)
    clear_tool_registry()
    yield
    clear_tool_registry()
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder: Path, text: str) -> Path:
    (folder / "tools.py").write_text(textwrap.dedent(text))
    return folder


GOOD = '''
    import math
    from dataclasses import dataclass
    from helper import PLACE
    from rnow.core import ToolArgs, tool

    @dataclass
    class Page:
        text: str

    @tool(timeout=5)
    async def browse(url: str, page: int = 1) -> str:
        """Read a page."""
        return Page(f"{PLACE} {url}").text

    @tool(sandbox=True)
    def add(a: int, b: int = 2, /, *, c: int = 3, args: ToolArgs) -> list:
        """Add."""
        return [a, b, c, args.metadata]
'''


def test_tools_are_found_and_described(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("PLACE = 'here'\n")
    tools = load_tools(write(tmp_path, GOOD))
    assert list(tools) == ["browse", "add"]
    schema = ToolSchema(
        name="browse",
        description="Read a page.",
        parameters={
            "type": "object",
            "properties": {"url": {"type": "string"}, "page": {"type": "integer"}},
            "required": ["url"],
            "additionalProperties": False,
        },
    )
    spec = ToolSpec(schema=schema, timeout_s=5, is_async=True, read_only=True)
    assert tools["browse"].spec == spec
    assert ToolSpec.from_json(asdict(spec)) == spec
    assert (tools["add"].spec.is_async, tools["add"].spec.read_only) == (False, False)
    assert sandbox_notices(tools) == (
        "tools.py: 'add' asks for a sandbox; there are no containers here, it runs in the tool "
        "worker with the rights of this user",
    )


def test_a_call_reaches_parameters_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("PLACE = 'here'\n")
    add = load_tools(write(tmp_path, GOOD))["add"]
    assert add.invoke({"a": 1}, metadata={"m": 1}) == [1, 2, 3, {"m": 1}]
    assert add.invoke({"c": 9, "b": 8, "a": 7}, metadata={}) == [7, 8, 9, {}]


BAD_IMPORT = "; install it in the environment that rnow runs in"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            """
            from rnow.core import tool

            @tool
            def search(query: str):
                '''Search.'''
            """,
            "tools.py:4: Tool registration failed: Tool 'search' must declare a return type "
            "annotation. Add -> ReturnType to the function signature.",
        ),
        (
            """
            from rnow.core import tool

            @tool
            def search(query: str) -> str: ...
            """,
            "tools.py:4: Tool 'search' must have a non-empty docstring. "
            "Add a docstring to the function.",
        ),
        (
            """
            from rnow.core import tool

            @tool(description="Search.")
            def search(query: str) -> str: ...
            """,
            "tools.py:4: @tool has no option 'description': "
            "the function's docstring is what the model is told.",
        ),
        (
            """
            from rnow.core import tool

            @tool
            def search(query: Query) -> str:
                '''Search.'''
            """,
            "tools.py:5: NameError: name 'Query' is not defined",
        ),
        (
            """
            from rnow.core import tool

            class Place: ...

            @tool
            def search(query: list[Place]) -> str:
                '''Search.'''
            """,
            "tools.py:6: Tool registration failed: Parameter 'query' of tool 'search' has a type "
            "that cannot be made of what a model writes: Unable to generate pydantic-core schema "
            "for <class 'tools.Place'>. Use str, int, float, bool, list, dict, Literal, an Enum, a "
            "date, a tuple, a dataclass or a pydantic model.",
        ),
        (
            """
            from rnow.core import tool

            @tool
            async def stream(query: str) -> str:
                '''Stream.'''
                yield query
            """,
            "tools.py:4: Tool registration failed: Tool 'stream' is a generator: its result is "
            "never text. Return the whole result instead of yielding parts of it.",
        ),
        (
            """
            def load():
                return {}["key"]

            KEY = load()
            """,
            "tools.py:3: KeyError: 'key'",
        ),
        (
            "import rnow_no_such",
            f"tools.py:1: ModuleNotFoundError: No module named 'rnow_no_such'{BAD_IMPORT}",
        ),
        ("import broken", "tools.py:1: SyntaxError: '(' was never closed (broken.py, line 1)"),
        ("def f(:\n", "tools.py:1: invalid syntax"),
        ("raise SystemExit('bye')", "tools.py:1: SystemExit: bye"),
        (
            "def f() -> str: ...",
            "tools.py: no tool is defined; put @tool (from rnow.core) above each function that "
            "the model may call, or remove the file",
        ),
    ],
)
def test_an_unusable_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.py").write_text("x = (\n")
    with pytest.raises(ToolDefinitionError) as caught:
        load_tools(write(tmp_path, text))
    assert str(caught.value) == message
    assert TOOL_REGISTRY == {}


def test_two_tools_of_one_name_are_refused_where_the_second_stands(tmp_path: Path) -> None:
    text = """
        from rnow.core import tool

        @tool
        def look(q: str) -> str:
            '''First.'''

        @tool
        def look(q: str, n: int) -> str:
            '''Second.'''
    """
    with pytest.raises(ToolDefinitionError) as caught:
        load_tools(write(tmp_path, text))
    assert str(caught.value) == (
        "tools.py:8: Tool registration failed: Tool 'look' is defined twice: at tools.py:4 and at "
        "tools.py:8. Give one of the two another name."
    )


def test_a_folder_without_tools_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ToolDefinitionError) as caught:
        load_tools(tmp_path)
    assert str(caught.value) == f"tools.py: there is none in {tmp_path}"
