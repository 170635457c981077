"""Python annotations -> the JSON schema that the model is shown.

The mapping is that of the public rnow client, so that a project means the same here as there:

    str int float bool None     string integer number boolean null
    list, list[T]               array, with items
    dict, dict[K, V]            object; K and V are not described
    Literal["a", "b"]           string with enum
    Optional[T], T | None       T's schema with "null" among its types
    Union[A, B], A | B          anyOf
    Any                         string

Two differences: there `A | B` is not recognised; and what is not in the table (Enum, date, tuple,
dataclass, a pydantic model) is a string there, so that no call of such a tool succeeds: here it is
described and converted (rich_types.py), or refused. Defaults and texts of single parameters are not
part of the schema.
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rnow.core.rich_types import SCALARS, UNIONS, is_plain, rich_schema


def parameters_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the schema of the arguments that the model gives to `function`.

    A parameter named `args` is filled by the system and left out. Raises TypeError where a
    parameter has no type, has one that no JSON becomes, or takes arguments without a name.
    """
    hints = get_type_hints(function, include_extras=True)
    name = function.__name__
    properties: dict[str, Any] = {}
    required: list[str] = []
    parameters = inspect.signature(function).parameters
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            star = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            raise TypeError(
                f"Tool '{name}' cannot use {star}{parameter.name}. "
                "Define explicit, typed parameters instead."
            )
    for parameter in parameters.values():
        if parameter.name == "args":
            continue
        if parameter.name not in hints:
            raise TypeError(
                f"Missing type hint for parameter '{parameter.name}' in tool '{name}'. "
                "All parameters must have type annotations."
            )
        try:
            properties[parameter.name] = _json_schema(hints[parameter.name])
        except TypeError as error:
            raise TypeError(
                f"Parameter '{parameter.name}' of tool '{name}' has a type that cannot be made of "
                f"what a model writes: {error}. Use str, int, float, bool, list, dict, Literal, "
                "an Enum, a date, a tuple, a dataclass or a pydantic model."
            ) from error
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def is_json_type(annotation: Any) -> bool:
    """Say whether values of this type go into JSON; what a list or dict holds is not looked at."""
    origin = get_origin(annotation) or annotation
    if origin in UNIONS:
        return all(is_json_type(option) for option in get_args(annotation))
    return origin in (*SCALARS, list, Literal, Any)


def _json_schema(annotation: Any) -> dict[str, Any]:
    if not is_plain(annotation):
        return rich_schema(annotation)
    origin = get_origin(annotation) or annotation
    arguments = get_args(annotation)
    if origin in SCALARS:
        return {"type": SCALARS[origin]}
    if origin is list:
        return {"type": "array"} | ({"items": _json_schema(arguments[0])} if arguments else {})
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin in UNIONS:
        return _union_schema(arguments)
    return {"type": "string"}


def _union_schema(options: tuple[Any, ...]) -> dict[str, Any]:
    schemas = [_json_schema(option) for option in options if option is not type(None)]
    nullable = len(schemas) < len(options)
    if len(schemas) == 1:
        # Optional[Union[A, B]] is Union[A, B, None] to Python, so a single option always has a
        # plain type.
        return schemas[0] | {"type": [schemas[0]["type"], "null"]}
    return {"anyOf": [*schemas, {"type": "null"}] if nullable else schemas}
