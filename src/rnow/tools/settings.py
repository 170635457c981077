"""What a tool pool needs to know, in one record."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rnow.browser.settings import BrowserSettings
from rnow.tools.mcp.spec import McpSettings

IMPORT_LIMIT_S = 120.0  # of tools.py, and of rewards.py


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """WorkerSettings(project_dir=Path("."), tool_timeout_s=60, workers=2, concurrency=32, …)"""

    project_dir: Path  # holds tools.py and perhaps .env; the workers' current directory
    tool_timeout_s: float  # rollout.tool_timeout; @tool(timeout=) goes before it
    max_tool_response: int | None = None  # tokens
    max_tool_response_chars: int | None = None  # characters
    workers: int  # processes
    concurrency: int  # calls at once in one worker
    env_names: tuple[str, ...] = ()  # tools.env: variables of the shell that tools may see
    kept_environ: Mapping[str, str] = field(default_factory=dict)  # the run's, over all others
    tokenizer_file: Path | None = None  # the student's tokenizer.json, to count tokens with
    browser: BrowserSettings = field(default_factory=BrowserSettings)  # for rnow.browser
    log_file: Path  # what tools print, and the tracebacks of what they raise
    start_timeout_s: float = IMPORT_LIMIT_S
    grace_s: float = 5.0  # past a call's deadline, for an async tool to end when it is cancelled
    mcp: McpSettings = field(default_factory=McpSettings)  # servers: their tools join tools.py's
    tools_dir: Path | None = None  # whose tools.py is imported; None: the project's
    stop_timeout_s: float = 2.0  # for a worker to end by itself when the pool closes, or it fails
