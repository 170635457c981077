"""What a tool worker is told of MCP servers: the config's, with `${NAME}` filled in.

Only the worker's start message holds the filled-in texts: no environment, no command line, no log.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rnow.config.mcp_servers import McpServer, is_url
from rnow.errors import ConfigError

_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|AUTH|COOKIE", re.IGNORECASE)  # names of such
_MIN_SECRET_CHARS = 8  # shorter ones are words of any text


class McpCallError(Exception):
    """What the model is told instead of a server's result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class McpSettings:
    """The servers of a project. No server: McpSettings()."""

    servers: tuple[McpServer, ...] = ()
    per_rollout: bool = True  # rollout.mcp_session
    place: str = "config.yml"  # where they are set, for messages


@dataclass(frozen=True, slots=True, kw_only=True)
class McpSpec:
    """One server, ready to be reached."""

    label: str  # "config.yml:7: MCP server 1 (npx)"
    url: str | None
    is_sse: bool
    headers: Mapping[str, str]
    command: tuple[str, ...]
    env: Mapping[str, str]
    tools: tuple[str, ...] | None  # None: all that it has
    secrets: tuple[str, ...]  # what variables and headers with the names of secrets held

    def scrub(self, text: str) -> str:
        """Return `text` without what only the server is to know."""
        for secret in self.secrets:
            text = text.replace(secret, "…")
        return text

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "McpSpec":
        lists = {name: tuple(fields[name]) for name in ("command", "secrets")}
        tools = fields["tools"]
        return cls(**{**fields, **lists, "tools": None if tools is None else tuple(tools)})


def fill_in(settings: McpSettings, variables: Mapping[str, str]) -> tuple[McpSpec, ...]:
    """Return the servers with `${NAME}` taken from `variables`; ConfigError for a missing one."""
    return tuple(
        _fill_in(server, f"{settings.place}: MCP server {number} ({server.name})", variables)
        for number, server in enumerate(settings.servers, 1)
    )


def _fill_in(server: McpServer, label: str, variables: Mapping[str, str]) -> McpSpec:
    used: dict[str, str] = {}

    def value_of(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ConfigError(
                f"{label} uses ${{{match[1]}}}, which is set neither in this shell nor in .env; "
                "set it or take it out"
            )
        used[match[1]] = variables[match[1]]
        return used[match[1]]

    def filled(text: str) -> str:
        return _VARIABLE.sub(value_of, text)

    headers, env = _each(server.headers, filled), _each(server.env, filled)
    url = None if server.url is None else filled(server.url)
    if url is not None and not is_url(url):
        raise ConfigError(f"{label} has a url that is none, once its variables are filled in")
    command = () if server.command is None else (server.command, *server.args)
    return McpSpec(
        label=label,
        url=url,
        is_sse=url is not None and server.is_sse_at(url),
        headers=headers,
        command=tuple(filled(word) for word in command),
        env=env,
        tools=None if server.tools is None else tuple(server.tools),
        secrets=_secrets_in(used | headers | env),
    )


def _secrets_in(texts: Mapping[str, str]) -> tuple[str, ...]:
    """Return what is to be scrubbed, the longest first: one may be a part of another."""
    words = {
        word
        for name, text in texts.items()
        if _SECRET.search(name)
        for word in text.split()  # "Bearer" says nothing
        if len(word) >= _MIN_SECRET_CHARS
    }
    return tuple(sorted(words, key=lambda word: (-len(word), word)))


def _each(texts: Mapping[str, str], change: Callable[[str], str]) -> dict[str, str]:
    return {name: change(text) for name, text in texts.items()}
