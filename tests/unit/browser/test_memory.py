import asyncio

import pytest

from rnow.browser.errors import BrowseError
from rnow.browser.memory import PageCache
from rnow.browser.text.pagination import Document


class Reader:
    """Reads documents of 100 bytes once it is told to, and counts."""

    def __init__(self, num_bytes: int = 100) -> None:
        self.num_reads = 0
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.error: BrowseError | None = None
        self.document = Document(url="https://a.test/", status=200, pages=("x" * num_bytes,))

    async def __call__(self) -> Document:
        self.num_reads += 1
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return self.document


async def test_those_who_ask_at_the_same_time_share_one_read() -> None:
    pages, read = PageCache(max_bytes=1_000), Reader()
    read.may_end.clear()
    callers = [asyncio.create_task(pages.get("a", read)) for _ in range(16)]
    await asyncio.sleep(0)
    read.may_end.set()
    answers = await asyncio.gather(*callers)
    assert read.num_reads == 1
    assert [document for document, _ in answers] == [read.document] * 16
    assert [is_shared for _, is_shared in answers] == [False] + [True] * 15


async def test_who_asks_later_gets_what_was_kept() -> None:
    pages, read = PageCache(max_bytes=1_000), Reader()
    assert await pages.get("a", read) == (read.document, False)
    assert await pages.get("a", read) == (read.document, True)
    assert await pages.get("b", read) == (read.document, False)
    assert read.num_reads == 2


async def test_an_error_reaches_all_who_wait_and_is_not_kept() -> None:
    pages, read = PageCache(max_bytes=1_000), Reader()
    read.error = BrowseError("timeout", "the site did not answer in time.")
    answers = await asyncio.gather(
        *(pages.get("a", read) for _ in range(3)), return_exceptions=True
    )
    assert answers == [read.error] * 3
    assert read.num_reads == 1
    read.error = None
    assert await pages.get("a", read) == (read.document, False)


async def test_a_caller_that_gives_up_takes_the_page_from_nobody() -> None:
    pages, read = PageCache(max_bytes=1_000), Reader()
    read.may_end.clear()
    first, second = (asyncio.create_task(pages.get("a", read)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    read.may_end.set()
    assert await second == (read.document, False)
    assert first.cancelled()
    assert read.num_reads == 1


async def test_a_page_that_nobody_waits_for_any_more_is_not_read_to_its_end() -> None:
    pages, read = PageCache(max_bytes=1_000), Reader()
    read.may_end.clear()
    callers = [asyncio.create_task(pages.get("a", read)) for _ in range(3)]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert not any(task.get_name() == "page a" for task in asyncio.all_tasks())
    read.may_end.set()
    assert await pages.get("a", read) == (read.document, False)
    assert read.num_reads == 2


async def test_who_asks_while_a_reading_is_being_ended_has_the_page_read_anew() -> None:
    pages, read = PageCache(max_bytes=1_000), Reader()
    read.may_end.clear()
    gives_up = asyncio.create_task(pages.get("a", read))
    await asyncio.sleep(0)
    gives_up.cancel()
    await asyncio.sleep(0)
    asks_now = asyncio.create_task(pages.get("a", read))
    read.may_end.set()
    assert await asks_now == (read.document, False)
    assert await pages.get("a", read) == (read.document, True)
    assert read.num_reads == 2


async def test_the_pages_read_least_recently_make_room() -> None:
    pages, read = PageCache(max_bytes=250), Reader(num_bytes=100)
    for key in ("a", "b", "a", "c"):
        await pages.get(key, read)
    assert pages.num_bytes == 200
    assert read.num_reads == 3
    assert (await pages.get("a", read))[1]
    assert (await pages.get("c", read))[1]
    assert not (await pages.get("b", read))[1]


async def test_a_page_larger_than_the_cache_is_given_but_not_kept() -> None:
    pages, read = PageCache(max_bytes=99), Reader(num_bytes=100)
    assert await pages.get("a", read) == (read.document, False)
    assert await pages.get("a", read) == (read.document, False)
    assert pages.num_bytes == 0


async def test_closing_ends_what_is_on_its_way() -> None:
    pages, read = PageCache(max_bytes=1_000), Reader()
    read.may_end.clear()
    caller = asyncio.create_task(pages.get("a", read))
    await asyncio.sleep(0)
    await pages.aclose()
    with pytest.raises(asyncio.CancelledError):
        await caller
