"""The servers under `rollout.mcp_url`: each a URL, `{url: …}` or `{command: …}`.

A server may need a secret in any of its texts, so none of them is ever shown: messages have its
number in the list and its `name`. `${NAME}` is filled in when tool workers start, not here.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

_LOCAL = re.compile(r"(localhost|127\.0\.0\.1):\d")  # as files of the hosted service have it
_URL = re.compile(r"https?://[^\s/?#]+\S*")


class McpServer(BaseModel):
    """One MCP server: one that runs already, or the command that starts it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | None = None  # where it listens, if it runs already
    transport: Literal["auto", "http", "sse"] = "auto"  # auto: sse where the url's path ends so
    headers: dict[str, str] = Field(default={})
    command: str | None = Field(default=None, min_length=1)  # speaks over its standard streams
    args: list[str] = Field(default=[])
    env: dict[str, str] = Field(default={})  # beside PATH, HOME and the like
    tools: list[str] | None = Field(default=None, min_length=1)  # None: all that it has

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Self:
        if (self.url is None) == (self.command is None):
            raise ValueError("must have either a url or a command")
        if self.url is not None and not (is_url(self.url) or self.url.startswith("${")):
            raise ValueError("has a url that is not one, as http://127.0.0.1:8000/mcp")
        needs = "command" if self.url is not None else "url"
        alone = ("args", "env") if self.url is not None else ("headers", "transport")
        for field in alone:
            if field in self.model_fields_set:
                raise ValueError(f"has {field}, which belongs to a {needs}")
        return self

    @model_serializer
    def _without_secrets(self) -> dict[str, Any]:
        """What a run's folder keeps of it."""
        kind = "command" if self.url is None else "url"
        return {kind: self.name, "tools": self.tools}

    @property
    def name(self) -> str:
        """What messages call it: no path, query or argument, any of which may hold a secret."""
        if self.url is None:
            return str(self.command)
        if self.url.startswith("${"):
            return self.url.partition("}")[0] + "}"
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def is_sse_at(self, url: str) -> bool:
        """Say how the url, its variables filled in, is spoken to."""
        if self.transport != "auto":
            return self.transport == "sse"
        return urlsplit(url).path.rstrip("/").endswith("/sse")


def is_url(text: str) -> bool:
    return _URL.fullmatch(text) is not None


def _parse_servers(value: Any) -> list[McpServer]:
    items = value if isinstance(value, list) else [] if value is None else [value]
    return [_parse_server(item, f"server {number}") for number, item in enumerate(items, 1)]


def _parse_server(item: Any, which: str) -> McpServer:
    if isinstance(item, McpServer):
        return item
    if isinstance(item, str):
        item = {"url": f"http://{item}" if _LOCAL.match(item) else item}
    if not isinstance(item, Mapping):
        raise ValueError(f"{which} must be a URL, {{url: …}} or {{command: …}}")
    try:
        return McpServer.model_validate(item)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[0]
    if not details["loc"]:
        raise ValueError(f"{which} {details['msg'].removeprefix('Value error, ')}")
    field = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        known = ", ".join(McpServer.model_fields)
        raise ValueError(f"{which} has no setting {field}; it has {known}")
    raise ValueError(f"{which}: {field} is not right: {details['msg']}")


McpServers = Annotated[list[McpServer], BeforeValidator(_parse_servers)]
