"""`rnow corpus`: fills the page store with the pages of a list, politely, and looks after it.

Pages are fetched through the same worker, guard and store as a run's, in the mode `record`: what
the store has is not asked for again, so a build that was stopped goes on with the same command. A
host has at most two requests under way, and its pace decides how long it takes; hosts do not wait
for each other. What may work later (timeouts, 5xx, 429) is tried again at the end.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yarl import URL

from rnow.browser.store.store import PageStore
from rnow.commands.pages import Pages, open_pages, outcome_of
from rnow.config.load import LoadedConfig
from rnow.config.settings import Config
from rnow.rollout.project_pages import require_filled, store_folder
from rnow.runtime.side_by_side import side_by_side

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
    with closing(PageStore(store_folder(config, directory))) as store:
        return [url for url in urls if store.get(url) is None]


def estimate_s(urls: Sequence[URL], intervals_s: Mapping[str, float]) -> float:
    """Return how long the fetching will take at the pace of the slowest host."""
    hosts = Counter(map(host_of, urls))
    return max((number * intervals_s[host] for host, number in hosts.items()), default=0.0)


def open_recorder(loaded: LoadedConfig, directory: Path) -> AbstractAsyncContextManager[Pages]:
    """Start a worker whose pages are recorded: it waits for a site however long that asks for."""
    # What a model would get of a page is nobody's business here: no tokenizer is needed.
    worker = {
        "tool_timeout_s": 2 * _MAX_WAIT_S,
        "max_tool_response": None,
        "max_tool_response_chars": None,
    }
    return open_pages(loaded, directory, worker=worker, store_mode="record", max_wait_s=_MAX_WAIT_S)


async def fetch_pages(pages: Pages, urls: Sequence[URL], *, on_page: Callable[[], None]) -> Built:
    """Fetch these pages into the store; `on_page` is told of each that is not tried again."""
    outcomes: dict[str, str] = {}
    left = list(urls)
    for round_ in range(1, _NUM_ROUNDS + 1):
        waiting: defaultdict[str, list[URL]] = defaultdict(list)
        for url in left:
            waiting[host_of(url)].append(url)
        left.clear()

        async def work(queue: list[URL], *, is_last: bool) -> None:
            while queue:
                url = queue.pop(0)
                code = outcomes[str(url)] = outcome_of(await pages.read(str(url)))
                if code.startswith(_LATER) and not is_last:
                    left.append(url)
                else:
                    on_page()

        is_last = round_ == _NUM_ROUNDS
        queues = (queue for queue in waiting.values() for _ in range(_PER_HOST))
        await side_by_side(*(work(queue, is_last=is_last) for queue in queues))
    return Built(outcomes=outcomes)


def describe_corpus(config: Config, directory: Path) -> dict[str, Any]:
    """Return what the store holds, in numbers. Raises ConfigError where there is none."""
    with _open_store(config, directory) as store:
        rows = store.rows()
        blobs = {row.body_hash: row.num_bytes for row in rows if row.error is None}
        files = [store.blob_file(body_hash) for body_hash in blobs]
        days = [time.strftime("%Y-%m-%d", time.gmtime(row.fetched_at)) for row in rows]
        return {
            "store": str(store.folder),
            "pages": sum(row.error is None for row in rows),
            "errors": sum(row.error is not None for row in rows),
            "bytes": sum(blobs.values()),
            "bytes_on_disk": sum(file.stat().st_size for file in files if file.is_file()),
            "by_host": dict(Counter(host_of(URL(row.asked_url)) for row in rows).most_common()),
            "by_source": dict(Counter(row.source for row in rows).most_common()),
            "oldest": min(days, default=None),
            "newest": max(days, default=None),
            "hash": store.fingerprint(),
        }


def verify_corpus(config: Config, directory: Path) -> tuple[int, tuple[str, ...]]:
    """Hash every page again; return their number, and the URLs of those that are damaged."""
    with _open_store(config, directory) as store:
        return len(store.rows()), tuple(row.asked_url for row in store.damaged())


def _open_store(config: Config, directory: Path) -> closing[PageStore]:
    require_filled(config, directory)
    return closing(PageStore(store_folder(config, directory), read_only=True))


def host_of(url: URL) -> str:
    return url.raw_host or ""
