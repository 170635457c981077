"""The rollouts of the next step, beside whatever is done meanwhile.

They are a task of their own: what cuts or fails the loop ends them, and what fails them waits until
the loop asks. An update that is under way by then has ended and is saved. Two steps are under way
where one has rolled out and the teacher still scores it: a device that samples does not wait for
one that scores.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

from rnow.errors import Interrupted
from rnow.runtime.kill_points import point
from rnow.runtime.side_by_side import end_tasks
from rnow.runtime.signals import StopRequest
from rnow.training.collect import Collected
from rnow.training.monitor import Monitor
from rnow.training.parts import Parts

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class _Step:
    """What is under way of one step."""

    task: asyncio.Task[Collected]
    rolled: asyncio.Event  # set once nothing of it rolls, and when it fails
    waited_s: float = 0.0  # by the loop, for nothing else

    @contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - began


class Ahead:
    """Collects steps in their order; one may begin when the one before it has rolled out.

    async with Ahead(parts, monitor=monitor, stop=stop) as ahead:
        ahead.begin(3); …; await ahead.rolled(); ahead.begin(4); collected = await ahead.batch()
    """

    def __init__(self, parts: Parts, *, monitor: Monitor, stop: StopRequest) -> None:
        self._parts = parts
        self._monitor = monitor
        self._stop = stop
        self._steps: deque[_Step] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        """End what is under way; an error of it that is not the one that ends all is told."""
        tasks = [step.task for step in self._steps]
        await end_tasks(*tasks)
        for failed in [task.exception() for task in tasks if not task.cancelled()]:
            if failed is None or failed is error or isinstance(failed, Interrupted):
                continue
            _log.error("rollouts had failed meanwhile", exc_info=failed)
            self._monitor.say(f"the rollouts of the next step had failed too: {failed}")

    def begin(self, step: int) -> None:
        """Have the rollouts of `step` begin at the next await."""
        assert all(one.rolled.is_set() for one in self._steps), "one step rolls out at a time"
        total = len(self._parts.steps[step]) * self._parts.group_size
        on_scored, rolled = self._monitor.begin_ahead(step, total=total), asyncio.Event()
        work = self._stop.cut(self._collect(step, on_scored, rolled.set))
        task = asyncio.create_task(work, name=f"rollouts of step {step}")
        task.add_done_callback(lambda _: rolled.set())
        self._steps.append(_Step(task=task, rolled=rolled))

    async def rolled(self) -> None:
        """Wait until nothing rolls out, though the teacher may still score; raise what failed."""
        (step,) = self._steps
        with step.waiting():
            await step.rolled.wait()
        self.check()
        point("ahead/rolled")

    def check(self) -> None:
        """Raise now what has failed already: it explains what else would fail for it."""
        for step in self._steps:
            if step.task.done():
                step.task.result()

    async def batch(self) -> Collected:
        """Return what was begun first, once it is whole; Interrupted where the run is to stop."""
        step = self._steps[0]
        with step.waiting():
            collected = await step.task
        self._steps.popleft()
        self._monitor.end_ahead()
        whole_s = collected.rollout_s + collected.teacher_wait_s
        return replace(collected, overlapped_s=max(0.0, whole_s - step.waited_s))

    async def _collect(
        self, step: int, on_scored: Callable[[], None], on_rolled: Callable[[], None]
    ) -> Collected:
        point("ahead/begun")
        parts = self._parts
        collected = await parts.collector.collect(
            step,
            parts.steps[step],
            group_size=parts.group_size,
            on_scored=on_scored,
            on_rolled=on_rolled,
        )
        await parts.keep_favourites(collected.batch)
        point("ahead/whole")
        return collected
