"""The tools of `rnow browse` and `rnow corpus build`: a run's pages, and what is behind a text.

A tool worker imports this file in the place of a project's tools.py. Alone in its folder, because
what stands beside a tools.py can be imported by it. The project's own, in the folder that the
worker runs in, is imported for its adapters, paces and page finders; its tools are not called.
"""

from pathlib import Path

from rnow.browser import shared
from rnow.browser.page_finders import find_pages
from rnow.browser.reader import Answer
from rnow.browser.rules.politeness import interval_s
from rnow.core import count, tool
from rnow.core.tool import TOOL_REGISTRY
from rnow.errors import ToolDefinitionError
from rnow.tools.loader import import_project_file

_project = Path("tools.py").resolve()
if _project.is_file():
    try:
        import_project_file(_project)
    except ToolDefinitionError as error:
        raise ToolDefinitionError(
            f"{error}; it says how pages are read (adapters, paces): mend it, or move it away"
        ) from None
    TOOL_REGISTRY.clear()

_last: list[Answer] = []


@tool
async def browse(url: str, page: int = 1) -> str:
    """Read a web page, as rnow.browser.read does."""
    answer = await shared.get().read(url, page)
    _last[:] = [answer]
    count(answer.counter)
    return answer.text


@tool
async def describe() -> dict[str, str | None]:
    """Say of the last page how it was got."""
    (answer,) = _last
    return {
        "code": answer.code,
        "url": answer.url,
        "source": answer.source,
        "cache": answer.cache,
    }


@tool(timeout=120)
def page_finders(texts: list[str]) -> list[list[str]]:
    """Say which pages the project's page finders name for each text."""
    return [find_pages(text) for text in texts]


@tool
def intervals(hosts: list[str]) -> dict[str, float]:
    """Say how many seconds pass between two requests to each host."""
    return {host: interval_s(host) for host in hosts}
