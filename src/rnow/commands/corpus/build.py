"""`rnow corpus build` as one sees it: what is wanted, how long it will take, how far it is."""

import asyncio
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rnow.commands.contact import decide_contact
from rnow.commands.corpus.fetch import Built, build_corpus, estimate_s, missing_pages
from rnow.commands.corpus.wanted import Wanted, wanted_pages
from rnow.config.load import LoadedConfig
from rnow.errors import ConfigError
from rnow.runtime.console import duration, sayer

_MAX_SHOWN = 10
_LINE_EVERY_S = 10.0


def build_project(
    loaded: LoadedConfig,
    project: Path,
    *,
    urls_file: Path | None,
    run: str | None,
    console: Console,
) -> Built:
    """Fetch what the project's pages lack in its store; say what came of it."""
    loaded = decide_contact(loaded, console)
    folder = None if run is None else _run_folder(project, run)
    wanted = wanted_pages(project, loaded.config, urls_file=urls_file, run=folder)
    _say_left_out(wanted, console)
    missing = missing_pages(loaded.config, project, wanted.urls)
    say = sayer(console)
    there = len(wanted.urls) - len(missing)
    say(
        f"{len(wanted.urls)} pages, {there} of them in {loaded.config.browser.store} already; "
        f"{len(missing)} to fetch: about {duration(estimate_s(missing))} at the pace of their "
        "sites"
    )
    with _Bar(console, total=len(missing)) as bar:
        built = asyncio.run(build_corpus(loaded, project, missing, on_page=bar.advance))
    for code, number in built.counts.items():
        say(f"  {number:>6} {code}")
    for url in built.unfinished[:_MAX_SHOWN]:
        say(f"  {built.outcomes[url]}: {url}")
    if built.unfinished:
        say(f"{len(built.unfinished)} pages may come later: the same command tries them again")
    say(f"To train on these pages alone: rnow run {project} browser.store_mode=replay")
    return built


def _run_folder(project: Path, run: str) -> Path:
    named = project / "runs" / run
    return named if named.is_dir() else Path(run)


def _say_left_out(wanted: Wanted, console: Console) -> None:
    if not wanted.urls:
        hosts = ", ".join(wanted.left_out) or "none"
        raise ConfigError(
            "the prompts name no page of a host in browser.allow_hosts or browser.local_sites "
            f"(hosts named: {hosts}); add hosts there, or pages with --urls or --from-run"
        )
    if wanted.left_out:
        hosts = ", ".join(f"{host} ({number})" for host, number in wanted.left_out.items())
        sayer(console)(f"left out, not in browser.allow_hosts: {hosts}")


class _Bar:
    """A bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console, *, total: int) -> None:
        self._console = console
        self._total = total
        self._num_done = 0
        self._started = self._told = time.monotonic()
        self._progress = Progress(
            TextColumn("pages"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("pages", total=total)

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def advance(self, code: str) -> None:
        self._progress.advance(self._task)
        self._num_done += 1
        now = time.monotonic()
        if not self._console.is_terminal and now - self._told > _LINE_EVERY_S:
            self._told = now
            left_s = (now - self._started) / self._num_done * (self._total - self._num_done)
            line = f"{self._num_done}/{self._total} pages, about {duration(left_s)} left"
            self._console.print(line, markup=False, highlight=False)
