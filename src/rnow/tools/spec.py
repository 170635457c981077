"""ToolSpec: what a worker tells the controller of one tool, before it runs any."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rnow.tools.base import ToolSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """One tool: its schema for the model, and how to treat calls of it."""

    schema: ToolSchema
    timeout_s: float | None  # @tool(timeout=); None: rollout.tool_timeout
    is_async: bool  # runs on the worker's event loop, so that it can be cancelled
    read_only: bool  # may be repeated
    server: int | None = None  # which MCP server has it, from 0; None: tools.py

    @property
    def name(self) -> str:
        return self.schema.name

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ToolSpec":
        return cls(**{**fields, "schema": ToolSchema(**fields["schema"])})
