"""The point of `rnow check` on the sites that a project reads: can they be read from here?

    browser.allow_hosts ─┐
    prompts, tools.py ───┴─▶ a URL of each host ─▶ its robots.txt, once, under the browser's rules

No page is fetched, and nothing that the address guard or browser.allow_hosts refuses is dialled.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rnow.browser.errors import BrowseError
from rnow.browser.http import HttpSource
from rnow.browser.rules.guard import check_url
from rnow.browser.rules.hosts import AllowedUrl, HostRules
from rnow.browser.settings import BrowserSettings
from rnow.commands.check.point import Point, not_checked, point
from rnow.commands.corpus.wanted import urls_in
from rnow.config.load import LoadedConfig
from rnow.errors import Problem
from rnow.records import Prompt
from rnow.rollout.environment import browser_settings
from rnow.runtime.main_task import run_main
from rnow.runtime.side_by_side import side_by_side

DEADLINE_S = 10.0
MAX_HOSTS = 50  # asked in one look; and named in one sentence a tenth of that

OpenSource = Callable[[BrowserSettings], HttpSource]

_KEY = "browser.allow_hosts"
_REMEDIES = {
    "blocked_address": "rnow reads no inner address under a public name; serve such pages as one "
    "of browser.local_sites, or take the host out of browser.allow_hosts",
    "blocked_by_site": "the model is refused there, unless an adapter in tools.py reads data that "
    "the site made for programs",
    "bad_url": "correct the name in browser.allow_hosts",
}
_REMEDY = (
    "look at the spelling and at this machine's network; where there is none, record pages "
    "elsewhere with rnow corpus build and set browser.store_mode: replay"
)


def check_sites(
    loaded: LoadedConfig,
    directory: Path,
    files: Mapping[str, Sequence[Prompt]],
    *,
    is_offline: bool,
    open_source: OpenSource = HttpSource,
    deadline_s: float = DEADLINE_S,
) -> Point | None:
    """Ask each host that the project names whether it may be read; None where it reads no sites."""
    name, browser = "sites", loaded.config.browser
    if not (browser.allow_hosts or browser.local_sites):
        return None
    settings = replace(
        browser_settings(loaded.config, directory),
        fetch_timeout_s=deadline_s,
        connect_timeout_s=deadline_s,
        max_wait_s=deadline_s,
    )
    urls, refused = _named(settings, named_texts(directory, files))
    warnings = _refused(loaded, refused)
    local = [f"{host}: served from here" for host in browser.local_sites]
    if not urls:
        return point(name, "\n".join(local) or "no host is named that could be asked", warnings)
    reason = _not_asked(loaded, is_offline=is_offline)
    if reason is not None:
        return not_checked(name, f"not asked, {reason}: {_list(list(urls))}")
    found = run_main(_ask_all(list(urls.values())[:MAX_HOSTS], settings, open_source))
    answering = [host for host, why in zip(urls, found, strict=False) if why is None]
    lines = [*local, *([f"may be read: {_list(answering)}"] if answering else [])]
    if len(urls) > MAX_HOSTS:
        lines.append(f"not asked: {len(urls) - MAX_HOSTS} more hosts")
    warnings += _unreadable(loaded, dict(zip(urls, found, strict=False)))
    return point(name, "\n".join(lines) or "none of them can be read from here", warnings)


def named_texts(
    directory: Path, files: Mapping[str, Sequence[Prompt]]
) -> Iterator[tuple[str, str]]:
    """Yield what may name pages, each with its file: prompts without system messages, tools.py."""
    for file, prompts in files.items():
        for prompt in prompts:
            for message in prompt.messages:
                if message["role"] != "system":
                    yield Path(file).name, str(message["content"])
    with suppress(OSError, UnicodeDecodeError):  # the point `tools` says so
        yield "tools.py", (directory / "tools.py").read_text(encoding="utf-8")


def _named(
    settings: BrowserSettings, texts: Iterator[tuple[str, str]]
) -> tuple[dict[str, AllowedUrl], dict[str, str]]:
    """Return a URL of each host that may be asked, and the file of each host that may not."""
    rules = HostRules(settings)
    urls: dict[str, AllowedUrl] = {}
    refused: dict[str, str] = {}
    hosts = [host for host in settings.allow_hosts if "*" not in host]
    for file, text in (*texts, *(("config.yml", f"https://{host}/") for host in hosts)):
        for written in urls_in(text):
            with suppress(BrowseError):  # half a URL in a sentence
                url = check_url(written, ports=settings.ports)
                host = url.raw_host or ""
                try:
                    allowed = rules.check(url)
                except BrowseError:
                    refused.setdefault(host, file)
                else:
                    if rules.local_port(host) is None:
                        urls.setdefault(host, allowed)
    return urls, refused


def _not_asked(loaded: LoadedConfig, *, is_offline: bool) -> str | None:
    browser = loaded.config.browser
    if is_offline:
        return "--offline"
    if browser.store_mode == "replay":
        return "browser.store_mode is replay"
    if browser.contact is None:
        return "browser.contact is null"
    return None


async def _ask_all(
    urls: Sequence[AllowedUrl], settings: BrowserSettings, open_source: OpenSource
) -> list[BrowseError | None]:
    source = open_source(settings)

    async def ask(url: AllowedUrl) -> BrowseError | None:
        try:
            await source.check_robots(url)
        except BrowseError as error:
            cause = error.__cause__  # of rules that cannot be read
            return cause if isinstance(cause, BrowseError) else error
        return None

    try:
        return await side_by_side(*map(ask, urls))
    finally:
        await source.aclose()


def _unreadable(loaded: LoadedConfig, found: Mapping[str, BrowseError | None]) -> list[Problem]:
    """Return a warning for each kind of failure, which names its hosts."""
    by_kind: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for host, why in found.items():
        if why is not None:
            by_kind[why.code, why.sentence.rstrip(".")].append(host)
    return [
        loaded.problem(
            _KEY,
            f"{_list(hosts)}: {code}, {sentence}; {_REMEDIES.get(code, _REMEDY)}",
            "warning",
        )
        for (code, sentence), hosts in by_kind.items()
    ]


def _refused(loaded: LoadedConfig, refused: Mapping[str, str]) -> list[Problem]:
    if not refused:
        return []
    names = ", ".join(dict.fromkeys(refused.values()))
    text = (
        f"{names}: pages are named of {_list(list(refused))}, which may not be read; add what the "
        "model is to read to browser.allow_hosts, if it is public"
    )
    return [loaded.problem(_KEY, text, "warning")]


def _list(hosts: Sequence[str]) -> str:
    shown = MAX_HOSTS // 10
    more = f" and {len(hosts) - shown} more" if len(hosts) > shown else ""
    return ", ".join(hosts[:shown]) + more
