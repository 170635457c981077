"""The seam between rollouts and whatever runs tools."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rnow.core.arguments import ArgumentError, check_arguments
from rnow.records import RolloutId, ToolOutcome

_MAX_NAME_CHARS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSchema:
    """What the model is told of one tool."""

    name: str
    description: str
    parameters: Mapping[str, Any]  # JSON schema of the arguments

    def as_openai(self) -> dict[str, Any]:
        """Return the form that chat templates take."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What a worker tells the controller of one tool, before it runs any."""

    schema: ToolSchema
    timeout_s: float | None  # @tool(timeout=); None: rollout.tool_timeout
    is_async: bool  # runs on the worker's event loop, so that it can be cancelled
    read_only: bool  # may be repeated
    server: int | None = None  # which MCP server has it, from 0; None: tools.py

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ToolSpec":
        """Build the record back from what `asdict` made of it."""
        return cls(**{**fields, "schema": ToolSchema(**fields["schema"])})


def allowed_schemas(
    schemas: Iterable[ToolSchema], allowed: Collection[str] | None
) -> list[ToolSchema]:
    """Return the tools that a prompt is shown; `allowed` None: all of them."""
    return [schema for schema in schemas if allowed is None or schema.name in allowed]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call as the student wrote it; `error` is set where it could not be read as a call."""

    name: str
    arguments: Mapping[str, Any]
    raw: str  # the text between the tags
    error: str | None = None  # one sentence for the model, as "Invalid JSON in tool call: …"
    id: str | None = None  # what the student called the call, where its template shows that


def checked_arguments(
    call: ToolCall, *, schemas: Mapping[str, ToolSchema], allowed: tuple[str, ...] | None
) -> dict[str, Any]:
    """Return the arguments to call with, decided before any code of the user runs.

    Raises ArgumentError for what is the model's mistake. A tool that is not among `allowed` is an
    unknown one.
    """
    if call.error is not None:
        raise ArgumentError(call.error)
    if call.name not in schemas or (allowed is not None and call.name not in allowed):
        raise ArgumentError(f"Tool '{call.name[:_MAX_NAME_CHARS]}' not found in registry")
    return check_arguments(call.name, schemas[call.name].parameters, call.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAnswer:
    """What the model is told, and what became of the call."""

    text: str  # within the cap on tokens
    outcome: ToolOutcome
    duration_s: float
    truncated: bool
    counts: Mapping[str, int] = field(default_factory=dict)  # "browser/fetched": 1


class ToolRunner(Protocol):
    """Runs tool calls. `call` never raises for what a model or a tool did: that is an answer."""

    @property
    def schemas(self) -> tuple[ToolSchema, ...]: ...

    async def call(
        self,
        call: ToolCall,
        *,
        rollout: RolloutId,
        allowed: tuple[str, ...] | None,
        metadata: Mapping[str, Any],
    ) -> ToolAnswer:
        """Run one call within its deadline. `allowed` None: every tool."""
        ...

    def release(self, rollout: RolloutId) -> None:
        """Let go of what was kept for a rollout, which has ended; returns at once."""
        ...
