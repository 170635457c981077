"""What is asked of Ray for a run is given back where the run does not come to it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rnow.cluster import connect


class Group:
    """A placement group that is ready when `ready` returns."""

    def __init__(self, ready: Callable[[], Awaitable[None]]) -> None:
        self.ready = ready
        self.is_removed = False


async def open_with(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(removed: Group) -> None:
        removed.is_removed = True

    def make(*_: Any, **__: Any) -> Group:
        return group

    monkeypatch.setattr(connect, "placement_group", make)
    monkeypatch.setattr(connect, "remove_placement_group", remove)
    async with connect.opened_cluster((), want={}):
        pytest.fail("it is never ready")


async def test_a_run_that_is_stopped_while_it_waits_for_gpus_asks_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    group = Group(never)
    opening = asyncio.create_task(open_with(group, monkeypatch))
    await asyncio.sleep(0.01)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert group.is_removed


async def test_what_ray_refuses_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused() -> None:
        raise ConnectionError("the head is gone")

    group = Group(refused)
    with pytest.raises(ConnectionError):
        await open_with(group, monkeypatch)
    assert group.is_removed
