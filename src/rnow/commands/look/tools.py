"""The tools of `rnow browse` and `rnow corpus build`: a run's pages, and what is behind a text.

A tool worker imports this file in the place of a project's tools.py. Alone in its folder, because
what stands beside a tools.py can be imported by it. The project's own, in the
folder that the worker runs in, is imported for its adapters and paces; its tools are not called.
"""

from contextlib import suppress
from pathlib import Path

from rnow.browser import shared
from rnow.browser.reader import Answer
from rnow.core import tool
from rnow.core.counts import count
from rnow.core.tool import TOOL_REGISTRY
from rnow.errors import ToolDefinitionError
from rnow.tools.loader import import_project_file

_project = Path("tools.py").resolve()
if _project.is_file():
    with suppress(ToolDefinitionError):  # pages can be looked at all the same
        import_project_file(_project)
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
