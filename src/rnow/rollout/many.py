"""Many rollouts side by side: who waits, what is tried again, what is lost, and why.

    attempts ─▶ slot ─▶ roll ─▶ slot given back ─▶ then ─▶ results, in the order of the attempts
                         └─ fails `num_tries` times ─▶ lost, with its reason; too many ─▶ raised

All that is rolled out goes this way, and differs in `then`: training scores a trajectory, an
evaluation grades it, `rnow test` shows it. A bad rollout is data about the run, not a crash: but it
never becomes a number.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from rnow.errors import (
    DeadlineError,
    EngineError,
    GradingError,
    RnowError,
    RolloutError,
    TeacherError,
    TemplateError,
)
from rnow.records import Trajectory
from rnow.rollout.attempt import Attempt
from rnow.runtime.side_by_side import side_by_side

NUM_TRIES = 2
MAX_WAITING = 64  # beside those that roll

Result = TypeVar("Result")
Roll = Callable[[Attempt], Awaitable[Trajectory]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What was lost of `num_wanted` attempts, by its reason; raises once that is too much.

    `refuse` makes the error to raise: at once, since behind an engine or a teacher that is gone the
    others would each wait out their retries.
    """

    num_wanted: int
    max_share: float
    refuse: Callable[["Losses"], RolloutError]
    by_type: Counter[type[RnowError]] = field(default_factory=Counter)
    _by_reason: Counter[str] = field(default_factory=Counter)

    @property
    def num(self) -> int:
        return self.by_type.total()

    @property
    def reasons(self) -> dict[str, int]:
        """How often each reason was given, the commonest first."""
        return dict(sorted(self._by_reason.items(), key=lambda item: (-item[1], item[0])))

    def add(self, attempt: Attempt, error: RnowError) -> None:
        self.by_type[type(error)] += 1
        self._by_reason[str(error)] += 1
        if self.num > self.max_share * self.num_wanted:
            raise self.refuse(self)


async def roll_many(
    attempts: Sequence[Attempt],
    roll: Roll,
    then: Callable[[Attempt, Trajectory], Awaitable[Result]],
    *,
    lose: Callable[[Attempt, RnowError], None],
    concurrency: int,
    max_waiting: int = MAX_WAITING,
    num_tries: int = NUM_TRIES,
    on_rolled: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Return what `then` made of each trajectory, in the order of the attempts, without the lost.

    At most `concurrency` roll at a time, and `max_waiting` more are open: a slow `then` holds
    rollouts back, and never fills the memory. `lose` is told of an attempt that failed `num_tries`
    times, and of one that `then` could not score or grade; what it raises ends all. Errors that are
    about more than one rollout (a tools.py that changed, a full disk) go up as they are.
    `on_rolled` is called when nothing is left to roll.
    """
    slots = asyncio.Semaphore(concurrency)
    room = asyncio.Semaphore(concurrency + max_waiting)
    door = asyncio.Lock()
    results: dict[int, Result] = {}
    num_left = len(attempts)

    async def one(position: int, attempt: Attempt) -> None:
        nonlocal num_left
        async with slots:
            rolled = await _roll_until_it_ends(attempt, roll, num_tries=num_tries)
        num_left -= 1
        if num_left == 0:
            on_rolled()
        if isinstance(rolled, RnowError):
            lose(attempt, rolled)
            return
        try:
            results[position] = await then(attempt, rolled)
        except (TeacherError, GradingError) as error:
            lose(attempt, error)

    async def admitted(position: int, attempt: Attempt) -> None:
        async with room:
            async with door:
                # Through one at a time: the first request goes out before the last prompt of
                # thousands is rendered, and the loop comes to what else is due.
                await asyncio.sleep(0)
            await one(position, attempt)

    if not attempts:
        on_rolled()
    await side_by_side(*(admitted(position, attempt) for position, attempt in enumerate(attempts)))
    return [results[position] for position in sorted(results)]


async def _roll_until_it_ends(
    attempt: Attempt, roll: Roll, *, num_tries: int
) -> Trajectory | RnowError:
    failure: RnowError | None = None
    for _ in range(num_tries):
        try:
            return await roll(attempt)
        except (RolloutError, EngineError, DeadlineError, TemplateError) as error:
            failure = error
    assert failure is not None, "at least one try"
    return failure
