"""`rnow browse`: one page, through the same worker, guard and store as in a run."""

import json
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rnow.browser.chromium.executable import NO_CHROMIUM, find_chromium
from rnow.browser.local_sites import LocalSites
from rnow.browser.settings import BrowserSettings
from rnow.config.load import LoadedConfig
from rnow.errors import UsageError
from rnow.plan.model_files import find_tokenizer
from rnow.records import RolloutId, ToolOutcome
from rnow.rollout.environment import site_folders, worker_settings
from rnow.rollout.project_pages import check_store
from rnow.tools.base import ToolAnswer, ToolCall
from rnow.tools.pool import ToolPool

_TOOLS = Path(__file__).parent / "look"
_CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the model would get of a page, and how it was got.

    Look(text="https://… (status 200, page 1 of 1)…", code="ok", url="https://…", source="http",
         cache="none", ms=212)
    """

    text: str
    code: str  # ok, that of an error, or of the tool call: error, timeout
    url: str | None  # after redirects; None where there is no page, as below
    source: str | None
    cache: str | None  # none, store or memory
    ms: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Pages:
    """A tool worker that reads pages; open while `open_pages` is."""

    def __init__(self, pool: ToolPool, notices: tuple[str, ...]) -> None:
        self.notices = notices  # for the user
        self._pool = pool

    async def read(self, url: str, page: int = 1) -> ToolAnswer:
        return await self._call("browse", {"url": url, "page": page})

    async def describe(self) -> Mapping[str, Any]:
        """Return code, url, source and cache of the page that was read last."""
        answer = await self._call("describe", {})
        described: dict[str, Any] = json.loads(answer.text)
        return described

    async def _call(self, name: str, arguments: Mapping[str, Any]) -> ToolAnswer:
        return await self._pool.call(
            ToolCall(name=name, arguments=arguments, raw=""),
            rollout=RolloutId(-1, 0, 0),
            allowed=None,
            metadata={},
        )


async def look_at(
    loaded: LoadedConfig, directory: Path, *, url: str, page: int, source: str
) -> tuple[Look, tuple[str, ...]]:
    """Read one page; return it with what the user should know.

    `source` auto: as a run would. http or browser: by that alone, past the store.
    """
    program = loaded.config.browser.executable
    if source == "browser" and find_chromium(program, directory=directory) is None:
        raise UsageError(f"--source browser: {NO_CHROMIUM}")
    changes: dict[str, Any] = {"source": source}
    if source != "auto":
        changes |= {"store": None, "store_mode": "live"}
    async with open_pages(loaded, directory, **changes) as pages:
        answer = await pages.read(url, page)
        known: Mapping[str, Any] = {"code": str(answer.outcome)}
        if answer.outcome is ToolOutcome.OK:
            known = await pages.describe()
    look = Look(
        text=answer.text,
        code=known["code"],
        url=known.get("url"),
        source=known.get("source"),
        cache=known.get("cache"),
        ms=round(1_000 * answer.duration_s),
    )
    return look, pages.notices


@asynccontextmanager
async def open_pages(
    loaded: LoadedConfig, directory: Path, *, tool_timeout_s: float | None = None, **browser: Any
) -> AsyncIterator[Pages]:
    """Start local sites and one worker as a run would; `browser`: other settings of its browser."""
    config = loaded.config
    if browser.get("store", "") is not None:
        check_store(config, directory)
    folder = find_tokenizer(config.model.path, project=directory)
    with tempfile.TemporaryDirectory(prefix="rnow-pages-") as logs:
        async with LocalSites(site_folders(config, directory)) as sites:
            settings = worker_settings(
                config,
                directory,
                tokenizer_file=None if folder is None else folder / "tokenizer.json",
                ports=sites.ports or dict.fromkeys(config.browser.local_sites, 0),
                log_file=Path(logs) / "tools.log",
            )
            changed: BrowserSettings = replace(settings.browser, num_workers=1, **browser)
            settings = replace(settings, workers=1, tools_dir=_TOOLS, browser=changed)
            if tool_timeout_s is not None:
                settings = replace(settings, tool_timeout_s=tool_timeout_s)
            notices: tuple[str, ...] = ()
            if folder is None and settings.max_tool_response is not None:
                max_chars = settings.max_tool_response * _CHARS_PER_TOKEN
                settings = replace(
                    settings, max_tool_response=None, max_tool_response_chars=max_chars
                )
                notices = (
                    f"the tokenizer of {config.model.path} is not on this machine: pages are cut "
                    f"at {max_chars} characters, not at {config.rollout.max_tool_response} tokens",
                )
            async with ToolPool(settings) as pool:
                yield Pages(pool, notices)
