"""Parameters whose types JSON does not have (Enum, date, tuple, dataclass, TypedDict, a pydantic
model): pydantic describes them to the model, and makes their values of what the model sends.

pydantic is imported where a tool has such a parameter, and not before.
"""

import inspect
import json
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from rnow.core.arguments import ArgumentError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SCALARS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
    dict: "object",
}
UNIONS = (Union, types.UnionType)
# Of a schema's keywords, those whose values are no schemas.
_VALUES = ("enum", "const", "default", "examples", "required")


def is_plain(annotation: Any) -> bool:
    """Say whether JSON has this type, and all that it is made of."""
    origin = get_origin(annotation) or annotation
    if origin is Literal:
        return all(type(value) in SCALARS for value in get_args(annotation))
    if origin in (list, dict, *UNIONS):
        return all(map(is_plain, get_args(annotation)))
    return origin is Any or origin in SCALARS


def rich_schema(annotation: Any) -> dict[str, Any]:
    """Return the JSON schema of a type that is not plain.

    Raises TypeError, with the reason alone, where no value of it can be made of JSON.
    """
    schema = _adapter(annotation)[1]
    return _inlined(schema, schema.get("$defs", {}), frozenset())  # type: ignore[no-any-return]


def with_rich_values(
    function: Callable[..., Any], name: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call as the function's types; raise ArgumentError for the model."""
    adapters = _adapters(function)
    return {
        parameter: _value(value, adapters[parameter], f"Tool '{name}': argument '{parameter}")
        if parameter in adapters
        else value
        for parameter, value in arguments.items()
    }


@cache
def _adapters(function: Callable[..., Any]) -> "dict[str, TypeAdapter[Any]]":
    """Return what makes values, for each parameter that is not plain."""
    hints = get_type_hints(function, include_extras=True)
    shown = inspect.signature(function).parameters.keys() - {"args"}
    return {name: _adapter(hints[name])[0] for name in shown if not is_plain(hints[name])}


def _value(value: Any, adapter: "TypeAdapter[Any]", subject: str) -> Any:
    from pydantic import ValidationError

    try:
        return adapter.validate_json(json.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f".{part}" for part in first["loc"])
        raise ArgumentError(f"{subject}{place}' is not valid: {first['msg']}.") from error


def _adapter(annotation: Any) -> "tuple[TypeAdapter[Any], dict[str, Any]]":
    from pydantic import PydanticUserError, TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        return adapter, adapter.json_schema()
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        if getattr(error, "code", "") == "typed-dict-version":
            raise TypeError(
                "before Python 3.12 the TypedDict of typing does not say which of its keys must be "
                "there; write from typing_extensions import TypedDict"
            ) from error
        raise TypeError(str(error).partition("\n")[0].partition(". ")[0].rstrip(".")) from error


def _inlined(node: Any, definitions: Mapping[str, Any], inside: frozenset[str]) -> Any:
    """Return a schema in one piece, as chat templates show it, and without generated titles."""
    if isinstance(node, list):
        return [_inlined(part, definitions, inside) for part in node]
    if not isinstance(node, dict):
        return node
    rest = {
        key: value
        if key in _VALUES
        else {name: _inlined(part, definitions, inside) for name, part in value.items()}
        if key == "properties"
        else _inlined(value, definitions, inside)
        for key, value in node.items()
        if key not in ("$ref", "$defs", "title", "discriminator")
    }
    if "$ref" not in node:
        return rest
    name = node["$ref"].rpartition("/")[2]
    if name in inside:
        raise TypeError(f"{name} holds itself, and a schema has an end")
    return _inlined(definitions[name], definitions, inside | {name}) | rest
