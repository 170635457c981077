"""Chromium under a tool worker's browser, on a site of this machine.

    python tests/bench/bench_browser.py [--pages 2000] [--compare 40]

Prints, and fails where a bound is broken:

    pages/s at eight at once, of the shared browser and of one crawler a call; ratio >= 3
    tabs, processes and files that are left after 200 calls of 16 rollouts of several groups: none
    growth of this process a page, from page 200 on, Chromium's apart: <= 5 KB
"""

import argparse
import asyncio
import gc
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
from yarl import URL

sys.path.insert(0, str(Path(__file__).parents[1]))

from chromium import browser_processes, chromium_executable, no_rules, num_tabs
from loopback import Pub, serve_pub
from rows import row

from rnow.browser import BrowserSettings
from rnow.browser.chromium.source import ChromiumSource
from rnow.browser.reader import Browser
from rnow.browser.rules.hosts import AllowedUrl
from rnow.browser.text.crawl4ai_import import loading_crawl4ai

CONCURRENCY = 8
MIN_RATIO = 3.0
MAX_GROWTH_BYTES = 5_000
WARM_UP_PAGES = 200
NUM_GROUPS = 4


def settings(pub: Pub) -> BrowserSettings:
    return BrowserSettings(
        local_sites={"pub.test": pub.port},
        executable=chromium_executable(),
        tab_timeout_s=3_600,
        render_timeout_s=120,
        max_cached_bytes=500_000,  # which is full before the growth is measured
    )


async def pages_per_s(read: Callable[[int], Awaitable[None]], num_pages: int) -> float:
    """Read pages, eight at once."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(number: int) -> None:
        async with slots:
            await read(number)

    begin = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(num_pages)))
    return num_pages / (time.perf_counter() - begin)


async def compare(pub: Pub, num_pages: int) -> dict[str, float]:
    """Measure both ways one after the other, in one process."""
    source = ChromiumSource(settings(pub), check_robots=no_rules)

    async def shared(number: int) -> None:
        url = AllowedUrl(URL(f"http://pub.test/page?{number}"))
        assert (await source.fetch(url)).status == 200

    await shared(-1)
    ours = await pages_per_s(shared, num_pages)
    await source.aclose()
    with loading_crawl4ai():
        from crawl4ai import AsyncWebCrawler, BrowserConfig, CrawlerRunConfig
        from crawl4ai.async_crawler_strategy import AsyncPlaywrightCrawlerStrategy

    async def crawler_a_call(number: int) -> None:
        config = BrowserConfig(verbose=False)
        strategy = AsyncPlaywrightCrawlerStrategy(browser_config=config)
        launch = strategy.browser_manager._build_browser_args
        strategy.browser_manager._build_browser_args = lambda: {
            **launch(),
            "executable_path": chromium_executable(),
        }
        async with AsyncWebCrawler(crawler_strategy=strategy, config=config) as crawler:
            url = f"http://127.0.0.1:{pub.port}/page?{number}"
            result = await crawler.arun(url, config=CrawlerRunConfig(verbose=False))
            assert "paragraph" in result.markdown

    theirs = await pages_per_s(crawler_a_call, max(num_pages // 2, CONCURRENCY))
    return {"pages_per_s": ours, "crawler_a_call_pages_per_s": theirs, "ratio": ours / theirs}


def num_processes() -> int:
    """Count what this process has started; Chromium's services come and go by themselves."""
    commands = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            commands.append(" ".join(process.cmdline()))
    return sum("--type=utility" not in command for command in commands)


async def count_leaks(pub: Pub) -> dict[str, int]:
    """Let 16 rollouts of several groups make 200 calls and more, twice; compare what is left."""
    source = ChromiumSource(settings(pub), check_robots=no_rules)
    async with Browser(settings(pub), source=source) as browser:

        async def one_round(name: str) -> tuple[int, int, int]:
            pages = [f"http://pub.test/page?{name}-{number}" for number in range(NUM_GROUPS * 4)]
            answers = await asyncio.gather(
                *(browser.read(page) for page in pages for _ in range(16))
            )
            assert all("paragraph" in answer.text for answer in answers)
            deadline = time.monotonic() + 30
            while num_tabs(source) and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
            return num_tabs(source), num_processes(), len(os.listdir("/proc/self/fd"))

        first, second = await one_round("first"), await one_round("second")
    return {
        "calls": 2 * 16 * NUM_GROUPS * 4,
        "tabs": second[0],
        "processes": max(second[1] - first[1], 0),
        "files": max(second[2] - first[2], 0),
        "browsers_after_close": len(browser_processes()),
    }


async def measure_growth(pub: Pub, num_pages: int) -> float:
    """Return the bytes a page that this process grows by, after its first 200 pages."""
    source = ChromiumSource(settings(pub), check_robots=no_rules)
    async with Browser(settings(pub), source=source) as browser:

        async def one(number: int) -> None:
            answer = await browser.read(f"http://pub.test/page?{number}")
            assert "paragraph" in answer.text
            pub.requests.clear()  # the site is of this process, and what it keeps is not measured

        async def from_page(begin: int, number: int) -> None:
            await one(begin + number)

        await pages_per_s(one, WARM_UP_PAGES)
        gc.collect()
        before = psutil.Process().memory_info().rss
        for begin in range(WARM_UP_PAGES, num_pages, 200):
            end = min(begin + 200, num_pages)
            await pages_per_s(partial(from_page, begin), end - begin)
            rss = psutil.Process().memory_info().rss
            grown = (rss - before) / (end - WARM_UP_PAGES)
            print(f"page {end}: {grown:+.0f} bytes a page", file=sys.stderr, flush=True)
        gc.collect()
        return float(psutil.Process().memory_info().rss - before) / (num_pages - WARM_UP_PAGES)


async def main(num_pages: int, num_compared: int) -> int:
    figures: dict[str, float] = {}
    async with serve_pub() as pub:
        pub.page("/page", "<h1>Title</h1>" + "<p>paragraph of text</p>" * 200)
        if num_compared:
            figures |= await compare(pub, num_compared)
        figures |= await count_leaks(pub)
        if num_pages > WARM_UP_PAGES:
            figures["growth_bytes_a_page"] = await measure_growth(pub, num_pages)
    most = dict.fromkeys(("tabs", "processes", "files", "browsers_after_close"), 0)
    most["growth_bytes_a_page"] = MAX_GROWTH_BYTES
    units = {"growth_bytes_a_page": "bytes", "ratio": "× the pages of one crawler a call"}
    held = [
        row(
            name,
            value,
            units.get(name, ""),
            most=most.get(name),
            least=MIN_RATIO if name == "ratio" else None,
        )
        for name, value in figures.items()
    ]
    return int(not all(held))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=2_000, help="for the growth; 0: not measured")
    parser.add_argument("--compare", type=int, default=40, help="for the ratio; 0: not measured")
    options = parser.parse_args()
    sys.exit(asyncio.run(main(options.pages, options.compare)))
