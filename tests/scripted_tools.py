"""ScriptedTools: a ToolRunner of plain functions in this process, for tests of rollouts.

It checks and answers as the real one does. It has no processes, no deadlines and no cap on length.
"""

import inspect
import time
from collections.abc import Callable, Mapping
from typing import Any

from rnow.core.arguments import ArgumentError
from rnow.core.counts import collecting
from rnow.core.rich_types import with_rich_values
from rnow.core.schema import parameters_schema
from rnow.core.tool import ToolArgs
from rnow.records import RolloutId, ToolOutcome
from rnow.tools.base import ToolAnswer, ToolCall, ToolSchema, checked_arguments
from rnow.tools.texts import error_of, result_of, tool_error


class ScriptedTools:
    """Runs functions by name, sync and async, with annotated parameters; `args: ToolArgs` is
    filled.

    def look(key: str) -> str:
        '''Look something up.'''
        return f"value of {key}"

    tools = ScriptedTools({"look": look})
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        self._functions = dict(functions)
        self._schemas = {
            name: ToolSchema(
                name=name,
                description=inspect.getdoc(function) or name,
                parameters=parameters_schema(function),
            )
            for name, function in functions.items()
        }
        self.calls: list[tuple[RolloutId, str, dict[str, Any]]] = []  # those that were made

    @property
    def schemas(self) -> tuple[ToolSchema, ...]:
        return tuple(self._schemas.values())

    async def call(
        self,
        call: ToolCall,
        *,
        rollout: RolloutId,
        allowed: tuple[str, ...] | None,
        metadata: Mapping[str, Any],
    ) -> ToolAnswer:
        started = time.monotonic()
        counts: dict[str, int] = {}
        try:
            arguments = checked_arguments(call, schemas=self._schemas, allowed=allowed)
            self.calls.append((rollout, call.name, arguments))
            with collecting(counts):
                text = result_of(await self._value(call.name, arguments, metadata))
            outcome = ToolOutcome.OK
        except ArgumentError as error:
            text, outcome = tool_error(str(error)), ToolOutcome.MODEL_ERROR
        except Exception as error:  # whatever a tool raises is text for the model
            text, outcome = error_of(error), ToolOutcome.ERROR
        return ToolAnswer(
            text=text,
            outcome=outcome,
            duration_s=time.monotonic() - started,
            truncated=False,
            counts=counts,
        )

    def release(self, rollout: RolloutId) -> None:
        pass

    async def _value(
        self, name: str, arguments: dict[str, Any], metadata: Mapping[str, Any]
    ) -> Any:
        function = self._functions[name]
        arguments = with_rich_values(function, name, arguments)
        if "args" in inspect.signature(function).parameters:
            arguments = arguments | {"args": ToolArgs(metadata=dict(metadata))}
        value = function(**arguments)
        return await value if inspect.isawaitable(value) else value
