"""Chromium under real tool workers: it serves many rollouts, and leaves nothing behind."""

import asyncio
import json
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from chromium import PATIENT, chromium_executable
from loopback import serve_pub
from processes import until

from rnow.browser import BrowserSettings
from rnow.records import RolloutId, ToolOutcome
from rnow.tools.base import ToolAnswer, ToolCall
from rnow.tools.pool import ToolPool
from rnow.tools.settings import WorkerSettings

pytestmark = pytest.mark.slow

TOOLS = '''
import gc
import os
from rnow import browser
from rnow.core import tool

@tool
async def browse(url: str, page: int = 1) -> str:
    """Read a web page."""
    return await browser.read(url, page)

@tool
def usage() -> list:
    """The worker's process, its open files and its Chromium's tabs."""
    from rnow.browser.chromium.process import Chromium
    alive = [each for each in gc.get_objects() if isinstance(each, Chromium) and each.is_alive]
    tabs = [len(context.pages) for each in alive for context in each._browser.contexts]
    return [os.getpid(), len(os.listdir("/proc/self/fd")), sum(max(num, 1) for num in tabs)]
'''
PAGE = "<h1>Page {}</h1><script>document.body.append('filled')</script>"


def make_pool(folder: Path, port: int, **settings: object) -> ToolPool:
    (folder / "tools.py").write_text(TOOLS)
    rules: dict[str, object] = {
        "local_sites": {"pub.test": port},
        "executable": chromium_executable(),
        **PATIENT,
    }
    return ToolPool(
        WorkerSettings(
            project_dir=folder,
            tool_timeout_s=200,
            max_tool_response=None,
            max_tool_response_chars=None,
            workers=1,
            concurrency=64,
            env_names=(),
            tokenizer_file=None,
            browser=BrowserSettings(**(rules | settings)),  # type: ignore[arg-type]  # of one test
            log_file=folder / "logs" / "tools.log",
            stop_timeout_s=20,
        )
    )


async def call(
    pool: ToolPool, name: str, *, rollout: RolloutId | None = None, **arguments: object
) -> ToolAnswer:
    return await pool.call(
        ToolCall(name=name, arguments=arguments, raw="", error=None),
        rollout=rollout or RolloutId(0, 0, 0),
        allowed=None,
        metadata={},
    )


def started_in(folder: Path) -> list[psutil.Process]:
    """Return the browser's processes, told by the home that was made for them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME", "").startswith(str(folder)):
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


async def wait_until_gone(folder: Path) -> None:
    await until(lambda: not started_in(folder))


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project whose workers have a folder of their own for temporary files."""
    with tempfile.TemporaryDirectory(prefix="rnow-t-", ignore_cleanup_errors=True) as name:
        monkeypatch.setenv("TMPDIR", f"{name}/tmp")
        for each in ("tmp", "logs"):
            (Path(name) / each).mkdir()
        yield Path(name)


async def test_the_calls_of_many_rollouts_leave_no_tab_no_process_and_no_file(
    folder: Path,
) -> None:
    num_groups, num_turns = 4, 2
    async with serve_pub() as pub:
        for number in range(num_groups * num_turns):
            pub.page(f"/{number}", PAGE.format(number))
        async with make_pool(folder, pub.port) as pool:

            async def one_round(name: str) -> tuple[int, int, int]:
                """Let 16 rollouts of each group read; count files, tabs and processes after it."""
                answers = await asyncio.gather(
                    *(
                        call(
                            pool,
                            "browse",
                            rollout=RolloutId(0, group, rollout),
                            url=f"http://pub.test/{group * num_turns + turn}?{name}",
                        )
                        for group in range(num_groups)
                        for rollout in range(16)
                        for turn in range(num_turns)
                    )
                )
                assert {answer.outcome for answer in answers} == {ToolOutcome.OK}
                assert all(answer.text.endswith("filled") for answer in answers)
                counts = Counter(name for answer in answers for name in answer.counts)
                assert counts == {"browser/fetched": 8, "browser/shared": 120}
                await asyncio.sleep(4)  # tabs without a page are closed after two seconds
                _, num_files, num_tabs = json.loads((await call(pool, "usage")).text)
                return num_files, num_tabs, len(started_in(folder))

            first, second = await one_round("first"), await one_round("second")
            # A file or a process left by each page would be eight; connections that are kept open
            # for a while, and Chromium's services, are a few more or less.
            assert second[0] < first[0] + 4
            assert second[2] < first[2] + 4
            assert first[1] == second[1] == 0
        asked = Counter(request.path for request in pub.requests if "icon" not in request.path)
        # In each round by plain HTTP, which finds almost no text, and then by Chromium.
        assert asked == {f"/{number}": 4 for number in range(8)}
    await wait_until_gone(folder)
    assert list((folder / "tmp").iterdir()) == []


async def test_a_browser_that_is_killed_is_replaced_and_counted_once(folder: Path) -> None:
    async with serve_pub() as pub:
        pub.page("/", PAGE.format(1))
        async with make_pool(folder, pub.port) as pool:
            first = await call(pool, "browse", url="http://pub.test/")
            for process in started_in(folder):
                process.kill()
            later = [
                await call(pool, "browse", url=f"http://pub.test/?{number}") for number in (1, 2)
            ]
    assert all(answer.text.endswith("filled") for answer in (first, *later))
    assert [answer.counts for answer in (first, *later)] == [
        {"browser/fetched": 1},
        {"browser/restarts": 1, "browser/fetched": 1},
        {"browser/fetched": 1},
    ]


@pytest.mark.parametrize("how", ["worker", "pool"])
async def test_no_chromium_outlives_its_worker(folder: Path, how: str) -> None:
    async with serve_pub() as pub:
        pub.page("/", PAGE.format(1))
        pub.page("/busy", "<script>for (;;) {}</script>")
        async with make_pool(folder, pub.port) as pool:
            assert (await call(pool, "browse", url="http://pub.test/")).text.endswith("filled")
            assert started_in(folder)
            hanging = asyncio.create_task(call(pool, "browse", url="http://pub.test/busy"))
            await asyncio.sleep(1)
            if how == "worker":
                worker, _, _ = json.loads((await call(pool, "usage")).text)
                os.kill(worker, signal.SIGKILL)
                hanging.cancel()
                await wait_until_gone(folder)
            hanging.cancel()
    await wait_until_gone(folder)
