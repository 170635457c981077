"""`rnow corpus`: fills the page store with the pages of a list, politely, and looks after it.

Pages are fetched through the same worker, guard and store as a run's, in the mode `record`: what
the store has is not asked for again, so a build that was stopped goes on with the same command. A
host has at most two requests under way, and its pace decides how long it takes; hosts do not wait
for each other. What may work later (timeouts, 5xx, 429) is tried again at the end.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarl import URL

from rnow.browser.rules.politeness import interval_s
from rnow.browser.store.store import PageStore, StoredRow
from rnow.commands.pages import Pages, open_pages
from rnow.config.load import LoadedConfig
from rnow.config.settings import Config
from rnow.rollout.project_pages import require_contact, require_pages, store_folder
from rnow.runtime.side_by_side import side_by_side
from rnow.tools.base import ToolAnswer

_PER_HOST = 2
_MAX_WAIT_S = 3_700.0  # for a slot: a site may say "in an hour"
_NUM_ROUNDS = 3
_LATER = ("timeout", "rate_limited", "unreachable", "http_5", "http_429", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build came to: pages by outcome, ok or the code of an error."""

    outcomes: dict[str, str]  # URL -> ok, http_404, blocked_by_site, …

    @property
    def counts(self) -> dict[str, int]:
        return dict(Counter(self.outcomes.values()).most_common())

    def as_json(self) -> dict[str, Any]:
        return {"counts": self.counts, "unfinished": list(self.unfinished)}

    @property
    def unfinished(self) -> tuple[str, ...]:
        """The pages that another build may get."""
        return tuple(url for url, code in self.outcomes.items() if code.startswith(_LATER))


def missing_pages(config: Config, directory: Path, urls: Sequence[URL]) -> list[URL]:
    """Return those of the pages that the store does not have, or has damaged."""
    store = PageStore(store_folder(config, directory))
    try:
        return [url for url in urls if store.get(url) is None]
    finally:
        store.close()


def estimate_s(urls: Sequence[URL]) -> float:
    """Return how long the fetching will take at the pace of the slowest host."""
    return max((number * interval_s(host) for host, number in _by_host(urls).items()), default=0.0)


async def build_corpus(
    loaded: LoadedConfig,
    directory: Path,
    urls: Sequence[URL],
    *,
    on_page: Callable[[str], None] = lambda code: None,
) -> Built:
    """Fetch these pages into the store; `on_page` gets the outcome of each attempt's end."""
    require_contact(loaded)
    outcomes: dict[str, str] = {}
    browser = {"store_mode": "record", "max_wait_s": _MAX_WAIT_S}
    async with open_pages(loaded, directory, tool_timeout_s=2 * _MAX_WAIT_S, **browser) as pages:
        left = list(urls)
        for number in range(_NUM_ROUNDS):
            is_last = number == _NUM_ROUNDS - 1

            def done(url: URL, code: str, is_last: bool = is_last) -> None:
                outcomes[str(url)] = code
                if is_last or not code.startswith(_LATER):
                    on_page(code)

            await _fetch_all(pages, left, done)
            left = [url for url in left if outcomes[str(url)].startswith(_LATER)]
    return Built(outcomes=outcomes)


async def _fetch_all(pages: Pages, urls: Sequence[URL], done: Callable[[URL, str], None]) -> None:
    waiting: defaultdict[str, list[URL]] = defaultdict(list)
    for url in urls:
        waiting[url.raw_host or ""].append(url)

    async def work(queue: list[URL]) -> None:
        while queue:
            url = queue.pop(0)
            done(url, outcome_of(await pages.read(str(url))))

    await side_by_side(*(work(queue) for queue in waiting.values() for _ in range(_PER_HOST)))


def outcome_of(answer: ToolAnswer) -> str:
    """Return ok, the code of the browser's error, or what became of the tool call itself."""
    errors = (name.partition("browser/error_")[2] for name in answer.counts)
    return next(filter(None, errors), str(answer.outcome))


def describe_corpus(config: Config, directory: Path) -> dict[str, Any]:
    """Return what the store holds, in numbers. Raises ConfigError where there is none."""
    _require_store(config, directory)
    store = PageStore(store_folder(config, directory), read_only=True)
    try:
        rows = store.rows()
        blobs = {row.body_hash: row.num_bytes for row in rows if row.error is None}
        files = [store.blob_file(body_hash) for body_hash in blobs]
        return {
            "store": str(store.folder),
            "pages": sum(row.error is None for row in rows),
            "errors": sum(row.error is not None for row in rows),
            "bytes": sum(blobs.values()),
            "bytes_on_disk": sum(file.stat().st_size for file in files if file.is_file()),
            "by_host": dict(Counter(_host(row) for row in rows).most_common()),
            "by_source": dict(Counter(row.source for row in rows).most_common()),
            "oldest": _day(min((row.fetched_at for row in rows), default=None)),
            "newest": _day(max((row.fetched_at for row in rows), default=None)),
            "hash": store.fingerprint(),
        }
    finally:
        store.close()


def verify_corpus(
    config: Config, directory: Path, *, on_page: Callable[[], None] = lambda: None
) -> tuple[int, tuple[str, ...]]:
    """Hash every page again; return their number, and the URLs of those that are damaged."""
    _require_store(config, directory)
    store = PageStore(store_folder(config, directory), read_only=True)
    try:
        damaged = tuple(row.key.removeprefix("GET ") for row in store.damaged(on_page))
        return len(store.rows()), damaged
    finally:
        store.close()


def _require_store(config: Config, directory: Path) -> None:
    browser = config.browser.model_copy(update={"store_mode": "replay"})
    require_pages(config.model_copy(update={"browser": browser}), directory)


def _by_host(urls: Sequence[URL]) -> Counter[str]:
    return Counter(url.raw_host or "" for url in urls)


def _host(row: StoredRow) -> str:
    return URL(row.key.removeprefix("GET ")).raw_host or ""


def _day(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%d", time.gmtime(seconds))
