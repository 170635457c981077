import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum, IntEnum
from functools import wraps
from typing import Annotated, Any, Literal, NotRequired, Optional, Union

import pytest
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

import rnow.models
from rnow.core import TOOL_REGISTRY, ToolArgs, clear_tool_registry, is_sandbox_tool, tool
from rnow.core.arguments import ArgumentError, check_arguments
from rnow.core.rich_types import with_rich_values
from rnow.core.schema import parameters_schema


@pytest.fixture(autouse=True)
def _empty_registry() -> Iterator[None]:
    clear_tool_registry()
    yield
    clear_tool_registry()


def no_docstring(a: str) -> str:
    return a


def blank_docstring(a: str) -> str:
    """ """
    return a


def no_return(a: str):
    """Do."""


def bad_return(a: str) -> tuple:
    """Do."""


def bad_return_in_union(a: str) -> dict | set[str]:
    """Do."""


def bad_return_sequence(a: str) -> Sequence[str]:
    """Do."""


def no_hint(a, b: int) -> str:
    """Do."""


def star(*args: str) -> str:
    """Do."""


def stars(**kwargs: str) -> str:
    """Do."""


def generator(a: str) -> str:
    """Do."""
    yield a


async def async_generator(a: str) -> str:
    """Do."""
    yield a


@wraps(generator)
def wrapped_generator(a: str) -> str:
    return generator(a)


def renamed_args(a: str, context: ToolArgs) -> str:
    """Do."""


FAILED = "Tool registration failed: "
JSON_TYPES = "is not JSON-serializable. Use dict, list, str, int, float, bool, or None."


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            no_docstring,
            ValueError,
            "Tool 'no_docstring' must have a non-empty docstring. Add a docstring to the function.",
        ),
        (
            blank_docstring,
            ValueError,
            "Tool 'blank_docstring' must have a non-empty docstring. "
            "Add a docstring to the function.",
        ),
        (
            no_return,
            TypeError,
            f"{FAILED}Tool 'no_return' must declare a return type annotation. "
            "Add -> ReturnType to the function signature.",
        ),
        (
            bad_return,
            TypeError,
            f"{FAILED}Tool 'bad_return' return type '<class 'tuple'>' {JSON_TYPES}",
        ),
        (
            bad_return_in_union,
            TypeError,
            f"{FAILED}Tool 'bad_return_in_union' return type 'dict | set[str]' {JSON_TYPES}",
        ),
        (
            bad_return_sequence,
            TypeError,
            f"{FAILED}Tool 'bad_return_sequence' return type "
            f"'collections.abc.Sequence[str]' {JSON_TYPES}",
        ),
        (
            no_hint,
            TypeError,
            f"{FAILED}Missing type hint for parameter 'a' in tool 'no_hint'. "
            "All parameters must have type annotations.",
        ),
        (
            star,
            TypeError,
            f"{FAILED}Tool 'star' cannot use *args. Define explicit, typed parameters instead.",
        ),
        (
            stars,
            TypeError,
            f"{FAILED}Tool 'stars' cannot use **kwargs. Define explicit, typed parameters instead.",
        ),
        *(
            (
                function,
                TypeError,
                f"{FAILED}Tool '{function.__name__}' is a generator: its result is never text. "
                "Return the whole result instead of yielding parts of it.",
            )
            for function in (generator, async_generator, wrapped_generator)
        ),
        (
            renamed_args,
            TypeError,
            f"{FAILED}Parameter 'context' of tool 'renamed_args' is a ToolArgs. "
            "Only a parameter named 'args' is filled with it: rename it.",
        ),
    ],
)
def test_what_cannot_be_a_tool_is_refused_when_it_is_defined(
    function: Callable[..., Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        tool(function)
    assert str(caught.value) == message
    assert TOOL_REGISTRY == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"description": "x"},
            "@tool has no option 'description': "
            "the function's docstring is what the model is told.",
        ),
        ({"retry": 3}, "@tool has no option 'retry'; it has sandbox, timeout and read_only."),
    ],
)
def test_options_that_are_none_are_refused_kindly(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as caught:
        tool(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize("timeout", [0, -1, True])
def test_a_timeout_is_a_number_of_seconds(timeout: float) -> None:
    with pytest.raises(TypeError) as caught:

        @tool(timeout=timeout)
        def search(query: str) -> str:
            """Search."""

    assert str(caught.value) == (
        f"{FAILED}Tool 'search' has timeout={timeout!r}. Give a number of seconds above 0."
    )


def test_a_tool_stays_the_function_that_it_was_and_knows_what_it_is() -> None:
    def search(query: str, *, limit: int = 3, args: ToolArgs) -> list[str]:
        """
        Search the web.
        """
        return [query] * limit

    assert tool(sandbox=True, timeout=2.5)(search) is search
    assert search("a", limit=2, args=ToolArgs()) == ["a", "a"]
    registered = TOOL_REGISTRY["search"]
    assert registered is search
    assert registered._tool_name == "search"
    assert registered._description == "Search the web."
    assert registered._timeout == 2.5
    assert registered._read_only is False
    assert is_sandbox_tool("search") is True
    assert is_sandbox_tool("unknown") is False
    assert registered._schema == {
        "type": "object",
        "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}},
        "required": ["query"],
        "additionalProperties": False,
    }


def test_browse_is_taken_for_read_only_and_others_say_so() -> None:
    @tool
    async def browse(url: str) -> str:
        """Read."""
        return url

    @tool(read_only=True)
    def look(url: str) -> str:
        """Read."""
        return url

    assert [TOOL_REGISTRY[name]._read_only for name in ("browse", "look")] == [True, True]

    # The same function again is no second tool.
    tool(read_only=False)(browse)
    assert TOOL_REGISTRY["browse"]._read_only is False


class Thing: ...


class Unit(Enum):
    C = "celsius"
    F = "fahrenheit"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Query(BaseModel):
    text: str
    limit: int = Field(5, description="How many at most", ge=1)
    units: list[Unit] = []


@dataclass
class Point:
    x: float
    y: float = 0.0


class Filter(TypedDict):
    title: str
    day: NotRequired[date]


class TypingsOwn(typing.TypedDict):
    title: str


class Node(BaseModel):
    children: "list[Node]" = []


@pytest.mark.parametrize(
    ("annotation", "schema"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (None, {"type": "null"}),
        (list, {"type": "array"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (
            list[list[str]],
            {"type": "array", "items": {"type": "array", "items": {"type": "string"}}},
        ),
        (dict, {"type": "object"}),
        (dict[str, int], {"type": "object"}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Literal[1, 2], {"type": "string", "enum": [1, 2]}),
        (Optional[int], {"type": ["integer", "null"]}),  # noqa: UP045
        (int | None, {"type": ["integer", "null"]}),
        (None | list[str], {"type": ["array", "null"], "items": {"type": "string"}}),
        (Literal["a"] | None, {"type": ["string", "null"], "enum": ["a"]}),
        (Union[int, str], {"anyOf": [{"type": "integer"}, {"type": "string"}]}),  # noqa: UP007
        (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
        (
            int | dict | None,
            {"anyOf": [{"type": "integer"}, {"type": "object"}, {"type": "null"}]},
        ),
        (Any, {"type": "string"}),
        (Unit, {"type": "string", "enum": ["celsius", "fahrenheit"]}),
        (Level, {"type": "integer", "enum": [1, 2]}),
        (Literal[Unit.C], {"type": "string", "const": "celsius"}),
        (
            Unit | None,
            {"anyOf": [{"type": "string", "enum": ["celsius", "fahrenheit"]}, {"type": "null"}]},
        ),
        (
            list[Unit],
            {"type": "array", "items": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
        ),
        (date, {"type": "string", "format": "date"}),
        (datetime, {"type": "string", "format": "date-time"}),
        (
            tuple[int, str],
            {
                "type": "array",
                "prefixItems": [{"type": "integer"}, {"type": "string"}],
                "minItems": 2,
                "maxItems": 2,
            },
        ),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (tuple, {"type": "array", "items": {}}),
        (set[str], {"type": "array", "items": {"type": "string"}, "uniqueItems": True}),
        (Annotated[int, Field(ge=1)], {"type": "integer", "minimum": 1}),
        (
            Query,
            {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "limit": {
                        "type": "integer",
                        "default": 5,
                        "description": "How many at most",
                        "minimum": 1,
                    },
                    "units": {
                        "type": "array",
                        "default": [],
                        "items": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                    },
                },
                "required": ["text"],
            },
        ),
        (
            Point,
            {
                "type": "object",
                "properties": {"x": {"type": "number"}, "y": {"type": "number", "default": 0.0}},
                "required": ["x"],
            },
        ),
        (
            Filter,  # its key `title` stays; the titles that pydantic makes up go
            {
                "type": "object",
                "properties": {
                    "title": {"type": "string"},
                    "day": {"type": "string", "format": "date"},
                },
                "required": ["title"],
            },
        ),
    ],
)
def test_annotations_become_the_schema_of_the_public_client(
    annotation: Any, schema: dict[str, Any]
) -> None:
    def f(a): ...

    f.__annotations__ = {"a": annotation}
    assert parameters_schema(f)["properties"]["a"] == schema


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        (Thing, f"Unable to generate pydantic-core schema for {Thing}"),
        (list[Thing], f"Unable to generate pydantic-core schema for {Thing}"),
        (Thing | None, f"Unable to generate pydantic-core schema for {Thing}"),
        (Node, "Node holds itself, and a schema has an end"),
        (
            Callable[[int], int],
            "Cannot generate a JsonSchema for core_schema.CallableSchema",
        ),
    ],
)
def test_a_type_that_nothing_can_be_converted_to_is_refused(annotation: Any, reason: str) -> None:
    def look(a) -> str:
        """Look."""

    look.__annotations__["a"] = annotation
    with pytest.raises(TypeError) as caught:
        tool(look)
    assert str(caught.value) == (
        f"{FAILED}Parameter 'a' of tool 'look' has a type that cannot be made of what a model "
        f"writes: {reason}. Use str, int, float, bool, list, dict, Literal, an Enum, a date, a "
        "tuple, a dataclass or a pydantic model."
    )


def rich(
    unit: Unit = Unit.C,
    level: Level = Level.LOW,
    query: Query | None = None,
    point: Point | None = None,
    filter: Filter | None = None,
    day: date | None = None,
    when: datetime | None = None,
    corner: tuple[int, str] = (0, ""),
    units: list[Unit] | None = None,
    names: set[str] | None = None,
    positive: Annotated[int, Field(ge=1)] = 1,
    args: ToolArgs | None = None,
) -> str: ...


def called(name: str, given: Any) -> Any:
    """Return what the function gets for what a model gives."""
    arguments = check_arguments("t", parameters_schema(rich), {name: given})
    return with_rich_values(rich, "t", arguments)[name]


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("unit", "fahrenheit", Unit.F),
        ("level", 2, Level.HIGH),
        ("level", "2", Level.HIGH),
        ("query", {"text": "a", "units": ["celsius"]}, Query(text="a", limit=5, units=[Unit.C])),
        ("query", '{"text": "a", "limit": 2}', Query(text="a", limit=2)),
        ("query", None, None),
        ("point", {"x": 1}, Point(1.0)),
        ("filter", {"title": "a", "day": "2026-01-31"}, {"title": "a", "day": date(2026, 1, 31)}),
        ("day", "2026-01-31", date(2026, 1, 31)),
        ("when", "2026-01-31T10:00:00", datetime(2026, 1, 31, 10)),
        ("corner", [3, "a"], (3, "a")),
        ("corner", '["3", "a"]', (3, "a")),
        ("units", ["celsius", "fahrenheit"], [Unit.C, Unit.F]),
        ("names", ["a", "b", "a"], {"a", "b"}),
        ("positive", "7", 7),
    ],
)
def test_a_rich_parameter_gets_a_value_of_its_type(name: str, given: Any, value: Any) -> None:
    got = called(name, given)
    assert (type(got), got) == (type(value), value)


@pytest.mark.parametrize(
    ("name", "given", "complaint"),
    [
        (
            "unit",
            "kelvin",
            "argument 'unit' must be one of ['celsius', 'fahrenheit'], got 'kelvin'.",
        ),
        ("query", {"limit": 1}, "argument 'query.text' is not valid: Field required."),
        (
            "query",
            {"text": "a", "units": ["kelvin"]},
            "argument 'query.units.0' is not valid: Input should be 'celsius' or 'fahrenheit'.",
        ),
        ("query", "a", "argument 'query' expected type ['object', 'null'], got str."),
        (
            "day",
            "2026-13-01",
            "argument 'day' is not valid: Input should be a valid date or datetime, "
            "month value is outside expected range of 1-12.",
        ),
        ("corner", [1], "argument 'corner.1' is not valid: Field required."),
        (
            "positive",
            0,
            "argument 'positive' is not valid: Input should be greater than or equal to 1.",
        ),
    ],
)
def test_what_a_rich_type_does_not_take_is_told_to_the_model(
    name: str, given: Any, complaint: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        called(name, given)
    assert str(caught.value) == f"Tool 't': {complaint}"


def test_two_tools_of_one_name_are_an_error_that_names_both() -> None:
    def first() -> Callable[..., str]:
        def look(q: str) -> str:
            """First."""
            return q

        return look

    def look(q: str, n: int) -> str:
        """Second."""
        return q

    kept = tool(first())
    tool(first())  # the same place: a module that is loaded anew
    with pytest.raises(TypeError) as caught:
        tool(look)
    places = [f"test_tool.py:{f.__code__.co_firstlineno}" for f in (kept, look)]
    assert str(caught.value) == (
        f"{FAILED}Tool 'look' is defined twice: at {places[0]} and at {places[1]}. "
        "Give one of the two another name."
    )
    assert TOOL_REGISTRY["look"]._description == "First."


def test_annotations_may_be_strings() -> None:
    def f(a: "int | None", b: "list[str]" = ()): ...

    schema = parameters_schema(f)
    assert schema["properties"] == {
        "a": {"type": ["integer", "null"]},
        "b": {"type": "array", "items": {"type": "string"}},
    }
    assert schema["required"] == ["a"]


def example(
    text: str = "",
    number: int = 0,
    ratio: float = 0.0,
    flag: bool = False,
    items: list[str] = [],  # noqa: B006
    grid: list[list[int]] = [],  # noqa: B006
    options: dict = {},  # noqa: B006
    maybe: int | None = None,
    choice: Literal["new", "old"] = "new",
    maybe_choice: Literal["new", "old"] | None = None,
    level: Literal[1, 2] = 1,
    either: int | list[str] = 0,
) -> str: ...


@pytest.mark.parametrize(
    ("name", "given", "mended"),
    [
        ("text", 5, "5"),
        ("text", None, "None"),
        ("text", {"a": 1}, "{'a': 1}"),
        ("number", " 5", 5),
        ("number", "-7", -7),
        ("ratio", 5, 5),
        ("ratio", "2.5", 2.5),
        ("flag", "Yes", True),
        ("flag", "0", False),
        ("items", '["a", "b"]', ["a", "b"]),
        ("items", ["a", 1], ["a", "1"]),
        ("grid", [["1", 2], "[3]"], [[1, 2], [3]]),
        ("options", '{"a": [1]}', {"a": [1]}),
        ("maybe", None, None),
        ("maybe", "3", 3),
        ("choice", "old", "old"),
        ("maybe_choice", None, None),
        ("level", 2, 2),
        ("level", "2", 2),
        ("either", '["a"]', ["a"]),
        ("either", "4", 4),
    ],
)
def test_arguments_that_are_plainly_meant_are_mended(name: str, given: Any, mended: Any) -> None:
    checked = check_arguments("t", parameters_schema(example), {name: given})[name]
    assert (type(checked), checked) == (type(mended), mended)


@pytest.mark.parametrize(
    ("name", "given", "complaint"),
    [
        ("number", "five", "expected type ['integer'], got str."),
        ("number", 5.0, "expected type ['integer'], got float."),
        ("number", True, "expected type ['integer'], got bool."),
        ("number", None, "expected type ['integer'], got NoneType."),
        ("ratio", False, "expected type ['number'], got bool."),
        ("ratio", "nan", "expected type ['number'], got str."),
        ("ratio", "1e999", "expected type ['number'], got str."),
        ("flag", 1, "expected type ['boolean'], got int."),
        ("flag", "perhaps", "expected type ['boolean'], got str."),
        ("items", "a, b", "expected type ['array'], got str."),
        ("items", '{"a": 1}', "expected type ['array'], got str."),
        ("items", "[" * 100_000, "expected type ['array'], got str."),
        ("grid", [[1], ["x"]], "expected type ['integer'], got str."),
        ("options", "[]", "expected type ['object'], got str."),
        ("maybe", "x", "expected type ['integer', 'null'], got str."),
        ("choice", "other", "must be one of ['new', 'old'], got 'other'."),
        ("choice", None, "must be one of ['new', 'old'], got None."),
        ("level", True, "must be one of [1, 2], got True."),
        ("either", "x", "expected type ['integer', 'array'], got str."),
    ],
)
def test_arguments_that_cannot_be_mended_are_named(name: str, given: Any, complaint: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check_arguments("t", parameters_schema(example), {name: given})
    place = "[1][0]" if name == "grid" else ""
    assert str(caught.value) == f"Tool 't': argument '{name}'{place} {complaint}"


def test_missing_goes_before_unexpected_goes_before_wrong_type() -> None:
    def f(a: int, b: int): ...

    schema = parameters_schema(f)
    messages = []
    for arguments in ({"a": "x", "c": 1}, {"a": "x", "b": 2, "c": 1, "d": 1}):
        with pytest.raises(ArgumentError) as caught:
            check_arguments("t", schema, arguments)
        messages.append(str(caught.value))
    assert messages == [
        "Tool 't': missing required argument 'b'.",
        "Tool 't': unexpected argument 'c'.",
    ]


def test_the_given_arguments_are_left_alone() -> None:
    given = {"number": "5"}
    check_arguments("t", parameters_schema(example), given)
    assert given == {"number": "5"}


def test_all_names_of_the_public_client_are_there_and_cost_nothing() -> None:
    program = (
        "import sys; from rnow.core import tool, ToolArgs, reward, RewardArgs, get_response, "
        "llm_judge, compute_total_reward, is_precondition, is_sandbox_tool, is_sandbox_reward, "
        "clear_tool_registry, clear_reward_registry, TOOL_REGISTRY, REWARD_REGISTRY; "
        "from rnow.core.tool import tool, ToolArgs; from rnow.models import tool, RewardArgs; "
        "print({'aiohttp', 'torch', 'numpy', 'pydantic', 'crawl4ai'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("set()\n", "")
    assert rnow.models.ToolArgs is ToolArgs


FOREIGN = {
    "type": "object",
    "properties": {
        "where": {"$ref": "#/$defs/Place"},
        "free": True,
        "size": {"anyOf": [{"type": "integer"}, {"const": "all"}]},
        "count": {"type": ["integer", "null"]},
        "kind": {"enum": ["a", 1]},
    },
    "required": ["where"],
}


@pytest.mark.parametrize(
    ("schema", "given", "expected"),
    [
        ({"type": "object"}, {"a": "1"}, {"a": "1"}),
        ({}, {}, {}),
        (FOREIGN, {"where": {"x": 1}, "free": [None], "size": "9"}, None),
        (FOREIGN, {"where": "x", "count": "7", "more": 1}, {"where": "x", "count": 7, "more": 1}),
        (FOREIGN, {"where": "x", "count": None, "kind": 1}, None),
    ],
)
def test_what_the_schema_of_a_server_leaves_open_is_given_as_it_is(
    schema: dict[str, Any], given: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    assert check_arguments("t", schema, given) == (given if expected is None else expected)


@pytest.mark.parametrize(
    ("schema", "given", "message"),
    [
        (FOREIGN, {}, "Tool 't': missing required argument 'where'."),
        (
            FOREIGN,
            {"where": "x", "count": "many"},
            "Tool 't': argument 'count' expected type ['integer', 'null'], got str.",
        ),
        (
            {"properties": {}, "additionalProperties": False},
            {"a": 1},
            "Tool 't': unexpected argument 'a'.",
        ),
    ],
)
def test_what_the_schema_of_a_server_says_is_checked(
    schema: dict[str, Any], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentError) as raised:
        check_arguments("t", schema, given)
    assert str(raised.value) == message


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pydantic reads typing's own from 3.12 on")
def test_the_typed_dict_of_typing_is_refused_with_the_one_to_take() -> None:
    def search(filters: list[TypingsOwn]) -> str:
        """Search."""
        return ""

    with pytest.raises(TypeError) as caught:
        tool(search)
    assert str(caught.value) == (
        "Tool registration failed: Parameter 'filters' of tool 'search' has a type that cannot be "
        "made of what a model writes: before Python 3.12 the TypedDict of typing does not say "
        "which of its keys must be there; write from typing_extensions import TypedDict. Use str, "
        "int, float, bool, list, dict, Literal, an Enum, a date, a tuple, a dataclass or a "
        "pydantic model."
    )
