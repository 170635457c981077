"""The rollouts of the next step, beside whatever is done meanwhile.

They are a task of their own: what cuts or fails the loop ends them, and what fails them waits until
the loop asks. An update that is under way by then has ended and is saved.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Self

from rnow.errors import Interrupted
from rnow.runtime.kill_points import point
from rnow.runtime.signals import StopRequest
from rnow.training.collect import Collected
from rnow.training.monitor import Monitor
from rnow.training.parts import Parts

_log = logging.getLogger(__name__)


class Ahead:
    """Collects one step at a time.

    async with Ahead(parts, monitor=monitor, stop=stop) as ahead:
        ahead.begin(3); …; collected = await ahead.batch()
    """

    def __init__(self, parts: Parts, *, monitor: Monitor, stop: StopRequest) -> None:
        self._parts = parts
        self._monitor = monitor
        self._stop = stop
        self._task: asyncio.Task[Collected] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        """End what is under way; an error of it that is not the one that ends all is told."""
        if self._task is None:
            return
        self._task.cancel()
        (ended,) = await asyncio.gather(self._task, return_exceptions=True)
        if ended is error or isinstance(ended, Interrupted):
            return
        if isinstance(ended, Exception):
            _log.error("rollouts had failed meanwhile", exc_info=ended)
            self._monitor.say(f"the rollouts of the next step had failed too: {ended}")

    def begin(self, step: int) -> None:
        """Have the rollouts of `step` begin at the next await."""
        assert self._task is None, "one step at a time"
        total = len(self._parts.steps[step]) * self._parts.group_size
        on_scored = self._monitor.begin_ahead(step, total=total)
        work = self._stop.cut(self._collect(step, on_scored))
        self._task = asyncio.create_task(work, name=f"rollouts of step {step}")

    def check(self) -> None:
        """Raise now what has failed already: it explains what else would fail for it."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def batch(self) -> Collected:
        """Return what was begun, once it is whole; Interrupted where the run is to stop."""
        assert self._task is not None, "begin comes first"
        began = time.perf_counter()
        collected = await self._task
        self._task = None
        self._monitor.end_ahead()
        whole_s = collected.rollout_s + collected.teacher_wait_s
        waited_s = min(time.perf_counter() - began, whole_s)
        return replace(collected, overlapped_s=whole_s - waited_s)

    async def _collect(self, step: int, on_scored: Callable[[], None]) -> Collected:
        point("ahead/begun")
        parts = self._parts
        collected = await parts.collector.collect(
            step, parts.steps[step], group_size=parts.group_size, on_scored=on_scored
        )
        await parts.keep_favourites(collected.batch)
        point("ahead/whole")
        return collected
