"""The bridge between a caller on the event loop and the one thread that runs forwards.

    event loop                        forward thread
    worker.call(…) ────────────────▶  works …
    await reply.wait(…)  ◀─────────── reply.resolve(value) or reply.fail(error)

One forward thread in the process, shared by all engines, because two engines that run at once only
fight for the same cores, and because what torch keeps by thread (number of threads, inference mode)
then holds for every forward. Engines take turns.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

from rnow.errors import DeadlineError, EngineError
from rnow.runtime.deadline import within

FORWARD_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rnow-forward")

_CUT_GRACE_S = 10.0  # a unit of work that is under way has to end first

Value = TypeVar("Value")


class Reply(Generic[Value]):
    """What one call waits for: made on the event loop, settled once from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Value] = self._loop.create_future()
        self.abandoned = False  # nobody waits any more: the work may be dropped

    def resolve(self, value: Value) -> None:
        self._post(lambda: self._future.set_result(value))

    def fail(self, error: Exception) -> None:
        """Raise it where the value is waited for, as an `EngineError`."""
        self._post(lambda: self._future.set_exception(_as_engine_error(error)))

    async def wait(
        self,
        what: str,
        *,
        timeout_s: float,
        describe: Callable[[], str],
        cut: Callable[[], None] | None = None,
    ) -> Value:
        """Return the value; after `timeout_s` raise a `DeadlineError` that names what waited.

        `cut` asks for what there is by then, which is waited for a little longer.
        """
        try:
            async with within(timeout_s, what):
                return await asyncio.shield(self._future)
        except DeadlineError as error:
            if cut is not None:
                cut()
                with suppress(TimeoutError, EngineError):
                    async with asyncio.timeout(_CUT_GRACE_S):
                        return await self._future
            raise DeadlineError(
                f"{error}, the limit of engine.request_timeout_s ({describe()})"
            ) from None
        finally:
            self.abandoned = True

    def _post(self, settle: Callable[[], None]) -> None:
        def settle_if_awaited() -> None:
            if not self._future.done() and not self.abandoned:
                settle()

        try:
            self._loop.call_soon_threadsafe(settle_if_awaited)
        except RuntimeError:  # the loop is closed, and whoever waited went with it
            self.abandoned = True


def _as_engine_error(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    engine_error = EngineError(f"the local engine failed: {type(error).__name__}: {error}")
    engine_error.__cause__ = error
    return engine_error
