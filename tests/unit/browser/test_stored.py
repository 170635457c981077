"""Which pages the store serves in which mode, and which answers it keeps."""

import asyncio
import sys
import time
from pathlib import Path

import pytest
from yarl import URL

from rnow.browser.errors import BrowseError
from rnow.browser.reader import Browser
from rnow.browser.settings import BrowserSettings, StoreMode
from rnow.browser.source import RawPage
from rnow.browser.store.source import StoredSource
from rnow.browser.store.store import PageStore

SITE = URL("https://a.test/")
MISS = "ERROR not_in_corpus: this page was not recorded; only pages of the corpus can be read here."

NOT_ALLOWED = "ERROR host_not_allowed: this host is not on the list of sites that may be read."


class Net:
    """A PageSource whose every page says how many have been fetched."""

    def __init__(self) -> None:
        self.num_fetched = 0
        self.error: BrowseError | None = None
        self.leads_to: URL | None = None
        self.wait_s = 0.0

    async def fetch(self, url: URL) -> RawPage:
        self.num_fetched += 1
        await asyncio.sleep(self.wait_s)
        if self.error is not None:
            raise self.error
        body = f"fetch {self.num_fetched}".encode()
        return RawPage(
            url=self.leads_to or url, status=200, content_type="text/plain", charset=None, body=body
        )

    async def aclose(self) -> None:
        pass


def source(net: Net, folder: Path, mode: StoreMode, **settings: object) -> StoredSource:
    chosen = {"allow_hosts": ("a.test",), "store": str(folder), "store_mode": mode} | settings
    return StoredSource(net, BrowserSettings(**chosen))  # type: ignore[arg-type]  # of one test


async def text(opened: StoredSource, url: URL = SITE) -> str:
    try:
        page = await opened.fetch(url)
    except BrowseError as error:
        return error.text
    return f"{page.body.decode()}{' stored' if page.is_stored else ''}"


async def test_what_is_recorded_is_replayed_and_nothing_else(tmp_path: Path) -> None:
    net = Net()
    recording = source(net, tmp_path, "record")
    assert [await text(recording), await text(recording)] == ["fetch 1", "fetch 1 stored"]
    await recording.aclose()
    replaying = source(net, tmp_path, "replay")
    assert await text(replaying) == "fetch 1 stored"
    assert await text(replaying, SITE / "other") == MISS
    await replaying.aclose()
    assert net.num_fetched == 1


async def test_a_stored_page_of_a_host_that_is_no_longer_on_the_list_is_refused(
    tmp_path: Path,
) -> None:
    recording = source(Net(), tmp_path, "record")
    assert await text(recording) == "fetch 1"
    await recording.aclose()
    for hosts, answer in (
        (("a.test",), "https://a.test/ (status 200, page 1 of 1)\n\nfetch 1"),
        (("b.test",), NOT_ALLOWED),
    ):
        rules = BrowserSettings(allow_hosts=hosts, store=str(tmp_path), store_mode="replay")
        async with Browser(rules) as browser:
            assert (await browser.read("https://a.test/")).text == answer


async def test_live_serves_what_is_young_and_record_what_is_old_too(tmp_path: Path) -> None:
    store, net, other = PageStore(tmp_path), Net(), SITE / "other"
    for url in (SITE, other):
        store.put(url, await net.fetch(url), now=time.time() - 3600)
    live = source(net, tmp_path, "live", ttl_s=600)
    assert [await text(live), await text(live)] == ["fetch 3", "fetch 3 stored"]
    recording = source(net, tmp_path, "record", ttl_s=600)
    assert await text(recording, other) == "fetch 2 stored"
    await live.aclose()
    await recording.aclose()


async def test_a_page_of_the_future_is_not_young(tmp_path: Path) -> None:
    store, net = PageStore(tmp_path), Net()
    store.put(SITE, await net.fetch(SITE), now=4e9)
    live = source(net, tmp_path, "live")
    assert await text(live) == "fetch 2"
    await live.aclose()


async def test_replay_then_live_fetches_what_is_missing_and_keeps_none_of_it(
    tmp_path: Path,
) -> None:
    net = Net()
    recording = source(net, tmp_path, "record")
    await text(recording)
    await recording.aclose()
    before = PageStore(tmp_path, read_only=True).fingerprint()
    both = source(net, tmp_path, "replay_then_live")
    assert await text(both) == "fetch 1 stored"
    other = SITE / "other"
    assert [await text(both, other), await text(both, other)] == ["fetch 2", "fetch 3"]
    await both.aclose()
    assert PageStore(tmp_path, read_only=True).fingerprint() == before


async def test_local_sites_are_recorded_and_in_live_always_read_anew(tmp_path: Path) -> None:
    net, local = Net(), {"clinic.test": 40_001}
    url = URL("https://clinic.test/")
    live = source(net, tmp_path, "live", local_sites=local)
    assert [await text(live, url), await text(live, url)] == ["fetch 1", "fetch 2"]
    await live.aclose()
    assert not any(tmp_path.iterdir())
    recording = source(net, tmp_path, "record", local_sites=local)
    assert [await text(recording, url), await text(recording, url)] == ["fetch 3", "fetch 3 stored"]
    await recording.aclose()


@pytest.mark.parametrize("code", ["http_404", "unsupported_type", "blocked_by_site"])
async def test_what_a_site_would_say_again_is_recorded(tmp_path: Path, code: str) -> None:
    net = Net()
    net.error = BrowseError(code, "as it is.", is_lasting=True)
    recording = source(net, tmp_path, "record")
    assert [await text(recording) for _ in range(2)] == [f"ERROR {code}: as it is."] * 2
    assert net.num_fetched == 1
    await recording.aclose()


@pytest.mark.parametrize("code", ["http_500", "rate_limited", "blocked_by_site", "timeout"])
async def test_what_may_be_otherwise_tomorrow_is_not_recorded(tmp_path: Path, code: str) -> None:
    net = Net()
    net.error = BrowseError(code, "for now.")
    recording = source(net, tmp_path, "record")
    assert await text(recording) == f"ERROR {code}: for now."
    net.error = None
    assert await text(recording) == "fetch 2"
    await recording.aclose()


async def test_a_stored_page_that_ended_on_a_host_not_allowed_is_refused(tmp_path: Path) -> None:
    net = Net()
    net.leads_to = URL("https://b.test/")
    recording = source(net, tmp_path, "record", allow_hosts=("a.test", "b.test"))
    assert await text(recording) == "fetch 1"
    await recording.aclose()
    replaying = source(net, tmp_path, "replay")
    assert await text(replaying) == NOT_ALLOWED
    await replaying.aclose()


async def test_a_page_is_fetched_once_for_two_that_want_it_at_the_same_time(tmp_path: Path) -> None:
    # The claim of another process, as the other worker would hold it.
    code = (
        "import sys, time; from pathlib import Path; from yarl import URL\n"
        "from rnow.browser.source import RawPage; from rnow.browser.store.store import PageStore\n"
        f"store, url = PageStore(Path({str(tmp_path)!r})), URL({str(SITE)!r})\n"
        "print(store.try_claim(url), flush=True); time.sleep(0.5)\n"
        "store.put(url, RawPage(url=url, status=200, content_type='text/plain', charset=None,\n"
        "                       body=b'by the other'))\n"
    )
    other = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stdout=asyncio.subprocess.PIPE
    )
    assert other.stdout is not None
    assert await other.stdout.readline() == b"True\n"
    net = Net()
    recording = source(net, tmp_path, "record")
    assert await text(recording) == "by the other stored"
    assert net.num_fetched == 0
    await recording.aclose()
    await other.wait()


async def test_who_waits_for_another_does_not_wait_for_ever(tmp_path: Path) -> None:
    store, net = PageStore(tmp_path), Net()
    code = (
        "import sys; from pathlib import Path; from yarl import URL\n"
        "from rnow.browser.store.store import PageStore\n"
        f"store = PageStore(Path({str(tmp_path)!r}))\n"
        f"print(store.try_claim(URL({str(SITE)!r})), flush=True); sys.stdin.read()\n"
    )
    other = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert other.stdout is not None
    assert await other.stdout.readline() == b"True\n"
    # Ten seconds of patience are part of the limit.
    recording = source(net, tmp_path, "record", fetch_timeout_s=-9.8, max_wait_s=0.0)
    assert (
        await text(recording) == "ERROR timeout: another reader has waited too long for this page."
    )
    assert net.num_fetched == 0
    await recording.aclose()
    other.kill()
    await other.wait()
    store.close()
