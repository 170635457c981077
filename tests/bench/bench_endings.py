"""How long an end takes, where a promise says so: in seconds, each with its bound.

python tests/bench/bench_endings.py

a run that is killed by SIGKILL, or stopped by Ctrl-C in a rollout: until no process of it is left
a process that is killed by SIGKILL: until its servers are gone
an engine that is closed although its servers stand still
50 calls that are given up: until no connection, and no tab, is open
pages in endless loops: from the deadline of a page until they are left
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from chromium import num_tabs, open_web
from loopback import open_browser, serve_pub
from processes import is_alive, until, wait_until
from rows import row
from served_lab import Lab

from rnow.browser.reader import Browser
from rnow.commands.init import init_project

END_LIMIT_S = 10.0  # docs/engines.md, docs/cluster.md
OPEN_LIMIT_S = 5.0  # docs/security.md
LEAVE_LIMIT_S = 30.0  # beside a page's own deadline
NUM_CALLS = 50
PAGE_TIMEOUT_S = 10.0
SERVED = """
import asyncio, sys
from pathlib import Path
from served_lab import Lab

async def main():
    lab = Lab(Path(sys.argv[1]))
    await lab.start(2)
    print("started", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def seconds_until(is_so: Callable[[], bool]) -> float:
    begin = time.monotonic()
    await until(is_so)
    return time.monotonic() - begin


def descendants(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def seconds_to_end(process: subprocess.Popen[str], how: signal.Signals) -> float:
    """Return how long after a signal neither the process nor any that it had started runs."""
    pids = [process.pid, *descendants(process.pid)]
    begin = time.monotonic()
    process.send_signal(how)
    process.wait()
    wait_until(lambda: not any(map(is_alive, pids)))
    return time.monotonic() - begin


def end_of_a_run(folder: Path, how: signal.Signals) -> float:
    """End a run of the demo in the rollouts of its first step, when its workers have started."""
    project = folder / how.name
    init_project(project, template="clinic")
    words = ("run", project, "--name", "ended", "trainer.eval_step=0")
    with subprocess.Popen(
        [sys.executable, "-m", "rnow", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        journal = project / "runs" / "ended" / "trajectories" / "000000.jsonl"
        wait_until(lambda: journal.exists() and journal.stat().st_size > 0)
        return seconds_to_end(process, how)


def end_with_servers(folder: Path) -> float:
    """Kill a process that has two servers; they are asked nothing, and told nothing."""
    lab = Lab(folder / "killed")
    with subprocess.Popen(
        [sys.executable, "-c", SERVED, str(lab.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        return seconds_to_end(process, signal.SIGKILL)


async def end_of_an_engine(folder: Path) -> float:
    """Close an engine while its servers stand still, as a hung one does."""
    lab = Lab(folder / "closed")
    engine = await lab.start(2)
    pids = lab.pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    await engine.aclose()
    await until(lambda: not any(map(is_alive, pids)))
    return time.monotonic() - begin


async def connections_left() -> float:
    async with serve_pub() as pub, open_browser(pub) as opened:
        calls = [
            asyncio.create_task(opened.read(f"https://pub.test/drip?{number}"))
            for number in range(NUM_CALLS)
        ]
        await until(lambda: pub.num_connections == NUM_CALLS)
        for call in calls:
            call.cancel()
        seconds = await seconds_until(lambda: pub.num_connections == 0)
        await asyncio.gather(*calls, return_exceptions=True)
    return seconds


def page_with(script: str) -> str:
    return f"<h1>Title</h1><script>{script}</script>"


async def tabs_left() -> float:
    async with open_web() as world:
        world.pub.page("/", page_with("setInterval(() => fetch('/x'), 10)"))
        async with Browser(world.settings, source=world.outliving) as opened:
            calls = [
                asyncio.create_task(opened.read(f"http://pub.test/?{number}"))
                for number in range(NUM_CALLS)
            ]
            await until(lambda: num_tabs(world.source) >= 2)
            for call in calls:
                call.cancel()
            seconds = await seconds_until(lambda: num_tabs(world.source) == 0)
            await asyncio.gather(*calls, return_exceptions=True)
    return seconds


async def endless_pages() -> float:
    """Return how long after a page's deadline three that never end are left."""
    async with open_web(render_timeout_s=PAGE_TIMEOUT_S) as world:
        world.pub.page("/ok", page_with("0"))
        await world.read("http://pub.test/ok")  # starts the browser
        world.pub.page("/at-load", page_with("while (true) {}"))
        world.pub.page("/after", page_with("setTimeout(() => { while (true) {} }, 1)"))
        begin = time.monotonic()
        pages = ("at-load", "after", "drip")
        await asyncio.gather(*(world.read(f"http://pub.test/{page}") for page in pages))
        return time.monotonic() - begin - PAGE_TIMEOUT_S


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held = [
            row(
                f"a run, {how.name}, until nothing of it is left",
                end_of_a_run(folder, how),
                "s",
                most=END_LIMIT_S,
            )
            for how in (signal.SIGKILL, signal.SIGINT)
        ]
        held += [
            row(what, seconds, "s", most=most)
            for what, seconds, most in (
                ("a run's servers, SIGKILL to the run", end_with_servers(folder), END_LIMIT_S),
                (
                    "an engine whose servers stand still, closed",
                    asyncio.run(end_of_an_engine(folder)),
                    END_LIMIT_S,
                ),
                (
                    f"{NUM_CALLS} calls given up, until no connection is open",
                    asyncio.run(connections_left()),
                    OPEN_LIMIT_S,
                ),
                (
                    f"{NUM_CALLS} calls given up, until no tab is open",
                    asyncio.run(tabs_left()),
                    OPEN_LIMIT_S,
                ),
                (
                    "endless pages, from their deadline until they are left",
                    asyncio.run(endless_pages()),
                    LEAVE_LIMIT_S,
                ),
            )
        ]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
