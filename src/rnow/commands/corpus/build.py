"""`rnow corpus build` as one sees it: what is wanted, how long it will take, how far it is."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from rnow.commands.contact import decide_contact
from rnow.commands.corpus.fetch import (
    Built,
    estimate_s,
    fetch_pages,
    host_of,
    missing_pages,
    open_recorder,
)
from rnow.commands.corpus.wanted import Wanted, wanted_pages
from rnow.config.load import LoadedConfig
from rnow.errors import ConfigError
from rnow.runtime.console import duration, make_bar, sayer
from rnow.runtime.main_task import run_main

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
    say = sayer(console)
    built = run_main(_build(loaded, project, urls_file=urls_file, run=folder, console=console))
    for code, number in built.counts.items():
        say(f"  {number:>6} {code}")
    for url in built.unfinished[:_MAX_SHOWN]:
        say(f"  {built.outcomes[url]}: {url}")
    if built.unfinished:
        say(f"{len(built.unfinished)} pages may come later: the same command tries them again")
    say(f"To train on these pages alone: rnow run {project} browser.store_mode=replay")
    return built


async def _build(
    loaded: LoadedConfig,
    project: Path,
    *,
    urls_file: Path | None,
    run: Path | None,
    console: Console,
) -> Built:
    config = loaded.config
    async with open_recorder(loaded, project) as pages:
        wanted = await wanted_pages(project, config, pages.find, urls_file=urls_file, run=run)
        _say_left_out(wanted, console)
        missing = missing_pages(config, project, wanted.urls)
        left_s = estimate_s(missing, await pages.intervals_s({*map(host_of, missing)}))
        sayer(console)(
            f"{len(wanted.urls)} pages, {len(wanted.urls) - len(missing)} of them in "
            f"{config.browser.store} already; {len(missing)} to fetch: about {duration(left_s)} "
            "at the pace of their sites"
        )
        with make_bar(console) as progress:
            on_page = _bar_mover(console, progress, total=len(missing))
            return await fetch_pages(pages, missing, on_page=on_page)


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


def _bar_mover(console: Console, progress: Progress, *, total: int) -> Callable[[], None]:
    """Return what moves the bar on by a page; without a terminal it says a line at times."""
    task = progress.add_task("pages", total=total)
    started = told = time.monotonic()
    num_done = 0

    def move() -> None:
        nonlocal told, num_done
        num_done += 1
        now = time.monotonic()
        left = f"about {duration((now - started) / num_done * (total - num_done))} left"
        progress.update(task, advance=1, description=f"pages, {left}")
        if not console.is_terminal and now - told > _LINE_EVERY_S:
            told = now
            sayer(console)(f"{num_done}/{total} pages, {left}")

    return move
