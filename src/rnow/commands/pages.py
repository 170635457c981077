"""Pages for `rnow browse` and `rnow corpus build`: the same worker, guard and store as in a run."""

import json
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rnow.browser.local_sites import LocalSites
from rnow.config.load import LoadedConfig
from rnow.errors import ToolDefinitionError, UsageError
from rnow.plan.model_files import find_tokenizer
from rnow.records import RolloutId, ToolOutcome
from rnow.rollout.environment import site_folders, worker_settings
from rnow.rollout.project_pages import check_store
from rnow.tools.base import ToolAnswer, ToolCall
from rnow.tools.pool import ToolPool

_TOOLS = Path(__file__).parent / "look"
_CHARS_PER_TOKEN = 4
_TEXTS_A_CALL = 100


class Pages:
    """A tool worker that reads pages; open while `open_pages` is."""

    def __init__(self, pool: ToolPool, notices: tuple[str, ...], *, log_file: Path) -> None:
        self.notices = notices  # for the user
        self._pool = pool
        self._log_file = log_file

    async def read(self, url: str, page: int = 1) -> ToolAnswer:
        return await self._call("browse", {"url": url, "page": page})

    def reasons(self, url: str) -> tuple[str, ...]:
        """Return what the log says of a page that could not be read, and the model is not told."""
        lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        return tuple(line for line in lines if line.startswith(f"{url} could not be read: "))

    async def describe(self) -> Mapping[str, Any]:
        """Return code, url, source and cache of the page that was read last."""
        described: dict[str, Any] = await self._value("describe", {})
        return described

    async def find(self, texts: Sequence[str]) -> list[list[str]]:
        """Return for each text the URLs that the project's page finders name."""
        found: list[list[str]] = []
        for start in range(0, len(texts), _TEXTS_A_CALL):
            found += await self._value(
                "page_finders", {"texts": texts[start : start + _TEXTS_A_CALL]}
            )
        return found

    async def intervals_s(self, hosts: Iterable[str]) -> dict[str, float]:
        """Return the least time between two requests to each host, as the project paces them."""
        intervals: dict[str, float] = await self._value("intervals", {"hosts": sorted(hosts)})
        return intervals

    async def _value(self, name: str, arguments: Mapping[str, Any]) -> Any:
        answer = await self._call(name, arguments)
        if answer.truncated:
            raise UsageError(
                f"the worker's answer to '{name}' is longer than a tool's may be: raise "
                "rollout.max_tool_response"
            )
        if answer.outcome is not ToolOutcome.OK:
            sentence = answer.text.removeprefix("<tool_error>").removesuffix("</tool_error>")
            is_late = answer.outcome is ToolOutcome.TIMEOUT
            raise ToolDefinitionError(
                f"{sentence}: mend what tools.py registers" if is_late else sentence
            )
        return json.loads(answer.text)

    async def _call(self, name: str, arguments: Mapping[str, Any]) -> ToolAnswer:
        return await self._pool.call(
            ToolCall(name=name, arguments=arguments, raw=""),
            rollout=RolloutId(-1, 0, 0),
            allowed=None,
            metadata={},
        )


def outcome_of(answer: ToolAnswer) -> str:
    """Return ok, the code of the browser's error, or what became of the tool call itself."""
    errors = (name.partition("browser/error_")[2] for name in answer.counts)
    return next(filter(None, errors), str(answer.outcome))


@asynccontextmanager
async def open_pages(
    loaded: LoadedConfig,
    directory: Path,
    *,
    worker: Mapping[str, Any] = MappingProxyType({}),
    **browser: Any,
) -> AsyncIterator[Pages]:
    """Start local sites and one worker as a run would, with these other settings of the two.

    Raises ToolDefinitionError where the project has a tools.py that cannot be imported.
    """
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
            changed = replace(settings.browser, num_workers=1, **browser)
            settings = replace(settings, workers=1, tools_dir=_TOOLS, browser=changed, **worker)
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
                yield Pages(pool, notices, log_file=settings.log_file)
