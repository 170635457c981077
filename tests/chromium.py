"""A real Chromium for tests: one browser for a module, on a network of the test's own."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from loopback import Answers, Inner, Names, Pub, read, serve_inner, serve_pub
from processes import until
from yarl import URL

from rnow.browser import BrowserSettings
from rnow.browser.chromium.executable import HOW_TO_INSTALL, find_chromium
from rnow.browser.chromium.source import ChromiumSource
from rnow.browser.http import HttpSource
from rnow.browser.reader import Browser
from rnow.browser.rules.hosts import AllowedUrl
from rnow.browser.source import PageSource, RawPage

# A machine with other work to do is slow, and no test is about that.
PATIENT = {"render_timeout_s": 60.0, "tab_timeout_s": 120.0, "fetch_timeout_s": 60.0}


def chromium_executable() -> str:
    """Return the Chromium of this machine; without one, tests of it fail."""
    found = find_chromium(None, directory=Path())
    if found is None:
        pytest.fail(f"these tests need a Chromium: {HOW_TO_INSTALL}", pytrace=False)
    return str(found)


async def no_rules(url: URL) -> None:
    """A site without robots.txt."""


def num_tabs(source: ChromiumSource) -> int:
    """Count the pages that are open; a context that lost its page counts as one."""
    chromium = source._chromium
    if chromium is None or chromium._browser is None or not chromium.is_alive:
        return 0
    return sum(max(len(context.pages), 1) for context in chromium._browser.contexts)


@dataclass
class Web:
    """pub may be read, as pub.test and under whatever names a test gives it; inner may not."""

    pub: Pub
    inner: Inner
    names: Names
    settings: BrowserSettings
    source: ChromiumSource
    may_dial: set[tuple[str, int]] = field(default_factory=set)

    def name(self, host: str, *answers: Answers) -> None:
        """Let a name have these answers, one a call; what is pub's may be dialled."""
        self.names.answers[host] = list(answers)

    @property
    def at_pub(self) -> Answers:
        return [("127.0.0.1", self.pub.port)]

    @property
    def at_inner(self) -> Answers:
        return [("127.0.0.2", self.inner.port)]

    @property
    def inner_url(self) -> str:
        return f"http://127.0.0.2:{self.inner.port}"

    async def read(self, url: str) -> str:
        """Return what the model gets of a page that Chromium reads, each time anew."""
        async with Browser(self.settings, source=self.outliving) as opened:
            return await read(opened, url)

    @property
    def outliving(self) -> PageSource:
        """Chromium as a source that outlives the browser which uses it."""
        return _Kept(self.source)

    async def read_by_http(self, url: str) -> str:
        source = HttpSource(self.settings, resolver=self.names, may_dial=self.is_dialled)
        async with Browser(self.settings, source=source) as opened:
            return await read(opened, url)

    async def all_tabs_closed(self) -> None:
        """Wait until no tab is open, those included that are kept for the next page."""
        await until(lambda: num_tabs(self.source) == 0)

    def is_dialled(self, address: str, port: int) -> bool:
        return (address, port) in self.may_dial


class _Kept:
    def __init__(self, source: ChromiumSource) -> None:
        self._source = source

    async def fetch(self, url: AllowedUrl) -> RawPage:
        return await self._source.fetch(url)

    async def aclose(self) -> None:
        pass


@asynccontextmanager
async def open_web(
    *, local_hosts: tuple[str, ...] = ("pub.test",), **settings: object
) -> AsyncIterator[Web]:
    async with serve_pub() as pub, serve_inner() as inner:
        chosen: dict[str, object] = {
            "allow_hosts": ("*",),
            "contact": "me@example.org",
            "local_sites": dict.fromkeys(local_hosts, pub.port),
            "ports": (80, 443, inner.port),
            "executable": chromium_executable(),
            **PATIENT,
        }
        rules = BrowserSettings(**(chosen | settings))  # type: ignore[arg-type]  # of one test
        names = Names({})
        may_dial = {("127.0.0.1", pub.port)}
        source = ChromiumSource(
            rules,
            check_robots=no_rules,
            resolver=names,
            may_dial=lambda address, port: (address, port) in may_dial,
        )
        try:
            yield Web(pub, inner, names, rules, source, may_dial)
        finally:
            await source.aclose()


def browser_processes() -> list[psutil.Process]:
    """Return the Chromium processes of this process, their helpers left out."""
    found = []
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if any("--remote-debugging-pipe" in part for part in command) and not any(
            part.startswith("--type=") for part in command
        ):
            found.append(process)
    return found
