import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rnow.tools import worker


class AtOnce:
    """A thread that has done its work before whoever started it goes on."""

    def __init__(self, *, target: Callable[[], None], daemon: bool) -> None:
        self.start = target


class Stopping:
    """A controller that asks for the end as soon as the worker is ready."""

    def receive(self) -> dict[str, Any]:
        return {"type": "stop"}


def test_a_stop_that_comes_first_stops_nothing_of_what_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "Thread", AtOnce)
    loop = asyncio.new_event_loop()
    line: Any = Stopping()
    runner: Any = None
    try:
        worker._serve(line, runner, loop, None)
        loop.run_until_complete(asyncio.sleep(0.01))  # what closes sessions
    finally:
        loop.close()
