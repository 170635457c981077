"""What an MCP server gave, as text: words as they are, a line for what was left out."""

from collections.abc import Iterable

from mcp_types import (
    AudioContent,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from rnow.core.counts import count
from rnow.tools.texts import result_of


def text_of(result: CallToolResult) -> str:
    """Return the result's parts as text, each from a new line; its structure where it has none."""
    if not result.content and result.structured_content is not None:
        return result_of(result.structured_content)
    return "\n".join(_parts(result))


def _parts(result: CallToolResult) -> Iterable[str]:
    for part in result.content:
        match part:
            case TextContent(text=text):
                yield text
            case EmbeddedResource(resource=TextResourceContents(text=text)):
                yield text
            case ResourceLink(name=name, uri=uri):
                yield f"{name}: {uri}"
            case ImageContent(mime_type=kind) | AudioContent(mime_type=kind):
                yield _left_out(kind)
            case EmbeddedResource(resource=resource):
                yield _left_out(resource.mime_type or "binary data")


def _left_out(kind: str) -> str:
    count("mcp/left_out")
    return f"[{kind} was left out: only text can be shown]"
