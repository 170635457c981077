"""Import a project's tools.py and describe its tools.

Only ever done in a worker process: importing runs the user's code, which may do anything.
"""

import importlib.util
import inspect
import sys
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnow.core.rich_types import with_rich_values
from rnow.core.tool import TOOL_REGISTRY, ToolArgs, ToolFunction
from rnow.errors import ToolDefinitionError
from rnow.tools.base import ToolSchema, ToolSpec

# What `@tool`, `@reward` and `@grader` themselves find wrong is a whole sentence.
_SENTENCES = ("Tool ", "@tool ", "Reward ", "@reward ", "Grader ")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTool:
    """A tool, and the function behind it."""

    spec: ToolSpec
    function: ToolFunction

    def invoke(
        self, arguments: Mapping[str, Any], *, metadata: Mapping[str, Any], rollout: str = ""
    ) -> Any:
        """Call the function; an async one returns its coroutine.

        Raises ArgumentError, before the function runs, for what its types cannot be made of.
        """
        values = with_rich_values(self.function, self.spec.schema.name, arguments)
        signature = inspect.signature(self.function)
        if "args" in signature.parameters:
            values["args"] = ToolArgs(metadata=dict(metadata))
        bound = inspect.BoundArguments(signature, OrderedDict(values))
        bound.apply_defaults()  # of a positional-only parameter that others follow
        return self.function(*bound.args, **bound.kwargs)


def load_tools(project_dir: Path) -> dict[str, LoadedTool]:
    """Import tools.py and return its tools by name, in the order of their definition.

    Raises ToolDefinitionError with file and line for whatever makes it unusable.
    """
    import_project_file(project_dir / "tools.py")
    if not TOOL_REGISTRY:
        raise ToolDefinitionError(
            "tools.py: no tool is defined; put @tool (from rnow.core) above each function that the "
            "model may call, or remove the file"
        )
    return {name: _describe(function) for name, function in TOOL_REGISTRY.items()}


def import_project_file(file: Path) -> None:
    """Import a Python file of a project's, under its own name and with its folder on the path.

    Raises ToolDefinitionError with file and line for whatever keeps it from being imported.
    """
    if not file.is_file():
        raise ToolDefinitionError(f"{file.name}: there is none in {file.parent}")
    sys.path.insert(0, str(file.parent))
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    if module_spec is None or module_spec.loader is None:
        raise ToolDefinitionError(f"{file.name}: {file} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[file.stem] = module  # dataclasses and pickle look a class's module up there
    try:
        module_spec.loader.exec_module(module)
    except ToolDefinitionError:  # of a file that this one imports in the same way: it says where
        raise
    except BaseException as error:  # the user's code: sys.exit() at import is an error of the file
        traceback.print_exc()
        raise ToolDefinitionError(_explain(error, file)) from error


def sandbox_notices(tools: Mapping[str, LoadedTool]) -> tuple[str, ...]:
    """Return one sentence for each tool that asks for a container."""
    return tuple(
        f"tools.py: '{name}' asks for a sandbox; there are no containers here, it runs in the tool "
        "worker with the rights of this user"
        for name, tool in tools.items()
        if tool.function._is_sandbox
    )


def _describe(function: ToolFunction) -> LoadedTool:
    schema = ToolSchema(
        name=function._tool_name, description=function._description, parameters=function._schema
    )
    spec = ToolSpec(
        schema=schema,
        timeout_s=function._timeout,
        is_async=inspect.iscoroutinefunction(function),
        read_only=function._read_only,
    )
    return LoadedTool(spec=spec, function=function)


def _explain(error: BaseException, file: Path) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    line = lines[-1] if lines else None
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file.name}:{error.lineno}: {error.msg}"
    where = file.name if line is None else f"{file.name}:{line}"
    # The type of anything else says what it is.
    if isinstance(error, TypeError | ValueError) and str(error).startswith(_SENTENCES):
        return f"{where}: {error}"
    explanation = f"{where}: {type(error).__name__}: {error}"
    if isinstance(error, ModuleNotFoundError):
        explanation += "; install it in the environment that rnow runs in"
        if (file.parent / "requirements.txt").is_file():
            explanation += f": pip install -r {file.parent / 'requirements.txt'}"
    return explanation
