"""Which pages a project's prompts need: the list that `rnow corpus build` goes through.

    prompts, metadata   every URL in them, and what the page finders of tools.py name for them
    --urls FILE         one URL a line
    --from-run RUN      what the tools of an earlier run were given as `url`, if they answered

System messages are left out: what stands there are examples of addresses. A URL is written as the
guard writes it, so that each page is on the list once.
"""

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarl import URL

from rnow.browser.errors import BrowseError
from rnow.browser.rules.guard import check_url
from rnow.browser.rules.hosts import HostRules
from rnow.browser.settings import BrowserSettings
from rnow.chat.prompts import read_prompt_file
from rnow.config.settings import Config
from rnow.errors import UsageError
from rnow.records import ToolOutcome
from rnow.runs.archive import journals
from rnow.runs.journal import read_journal

_URL = re.compile(r"""https?://[^\s<>"'`|\\^{}]+""", re.IGNORECASE)
_SENTENCE_END = ".,;:!?"
_OPENING = {")": "(", "]": "["}

Find = Callable[[list[str]], Awaitable[list[list[str]]]]  # texts -> URLs named for each


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The pages to fetch, and why others are not among them.

    Wanted(urls=(URL("https://clinic.test/trial/1"),), left_out={"evil.test": 3})
    """

    urls: tuple[URL, ...]  # in the order of their first mention
    left_out: dict[str, int]  # host that browser.allow_hosts does not name -> pages


async def wanted_pages(
    directory: Path,
    config: Config,
    find: Find,
    *,
    urls_file: Path | None = None,
    run: Path | None = None,
) -> Wanted:
    """Collect the pages of data.train_file, of data.val_file if there is one, and of the options.

    Raises DataError for prompts, UsageError for options that cannot be read.
    """
    browser = config.browser
    hosts = HostRules(
        BrowserSettings(
            allow_hosts=tuple(browser.allow_hosts),
            local_sites=dict.fromkeys(browser.local_sites, 0),
        )
    )
    texts = list(_texts(directory, config))
    options = [*_lines(urls_file), *_browsed(run)]
    named = zip(texts, await find(texts), strict=True)
    mentioned = (url for text, found in named for url in (*urls_in(text), *found))
    urls: dict[URL, None] = {}
    left_out: Counter[str] = Counter()
    for text in (*mentioned, *options):
        try:
            url = check_url(text, ports=BrowserSettings().ports)
        except BrowseError:
            continue  # half a URL in a sentence, or none that could ever be read
        try:
            hosts.check(url)
        except BrowseError:
            left_out[url.raw_host or ""] += 1
        else:
            urls[url] = None
    return Wanted(urls=tuple(urls), left_out=dict(left_out.most_common()))


def urls_in(text: str) -> Iterator[str]:
    """Yield the URLs that a text writes.

    >>> list(urls_in("See https://a.test/x_(y). Or (https://b.test/)?"))
    ['https://a.test/x_(y)', 'https://b.test/']
    """
    for found in _URL.findall(text):
        url = found.rstrip(_SENTENCE_END)
        while url.endswith((")", "]")) and url.count(url[-1]) > url.count(_OPENING[url[-1]]):
            url = url[:-1].rstrip(_SENTENCE_END)
        yield url


def _texts(directory: Path, config: Config) -> Iterator[str]:
    names = (config.data.train_file, config.data.val_file)
    for file in (directory / name for name in names):
        if file.name == config.data.train_file or file.is_file():
            read = read_prompt_file(
                file,
                dataset_type=config.dataset_type,
                drop_last_answer=config.data.drop_last_answer,
            )
            for prompt in read.prompts:
                asked = [each for each in prompt.messages if each["role"] != "system"]
                yield from _strings([*asked, prompt.metadata])


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--urls {file} cannot be read: {error}; give one URL a line") from error
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]


def _browsed(run: Path | None) -> Iterator[str]:
    if run is None:
        return
    found = journals(run / "trajectories")
    if not found:
        raise UsageError(f"--from-run {run}: there are no trajectories of a run in it")
    for journal in found:
        for scored in read_journal(journal):
            for turn in scored.trajectory.turns:
                for call in turn.tool_calls:
                    if call.outcome is ToolOutcome.OK:
                        yield from _url_of(call.arguments)


def _url_of(arguments: str) -> Iterator[str]:
    try:
        values = json.loads(arguments)
    except ValueError:
        return
    url = values.get("url") if isinstance(values, dict) else None
    if isinstance(url, str):
        yield url
