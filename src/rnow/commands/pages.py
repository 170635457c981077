"""Pages for `rnow browse` and `rnow corpus build`: the same worker, guard and store as in a run."""

import json
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rnow.browser.local_sites import LocalSites
from rnow.browser.settings import BrowserSettings
from rnow.config.load import LoadedConfig
from rnow.plan.model_files import find_tokenizer
from rnow.records import RolloutId
from rnow.rollout.environment import site_folders, worker_settings
from rnow.rollout.project_pages import check_store
from rnow.tools.base import ToolAnswer, ToolCall
from rnow.tools.pool import ToolPool

_TOOLS = Path(__file__).parent / "look"
_CHARS_PER_TOKEN = 4


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
                ports=sites.ports,
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
