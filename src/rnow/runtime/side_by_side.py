"""Several pieces of work at once, of which one that fails ends all."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def side_by_side(*work: Coroutine[Any, Any, Result]) -> list[Result]:
    """Return the results in the order of `work`.

    Where one raises, the others are cancelled and awaited, and that error goes up as it is: one
    reason is enough, and a group of them is no error that anybody handles. A cancellation from
    outside goes up whenever it comes: a `TaskGroup` drops one that meets an error.
    """
    tasks = [asyncio.create_task(one) for one in work]
    try:
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        await end_tasks(*tasks)
    _raise_first(tasks)
    return [task.result() for task in tasks]


async def each_to_its_end(*work: Coroutine[Any, Any, object]) -> None:
    """Tidy up in several places at once: each goes to its own end, also where another fails.

    The first error goes up then, and so does a cancellation from outside, which hurries nobody.
    """
    tasks = [asyncio.create_task(one) for one in work]
    await until_ended(*tasks)
    _raise_first(tasks)


def _raise_first(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """End tasks, whatever they are at, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await until_ended(*tasks)


async def until_ended(*tasks: asyncio.Task[Any]) -> None:
    """Wait until all have ended, cancelled ones with all that they do about it.

    Who is cancelled while it waits here waits on, and raises then: a `gather` would cancel the
    tasks once more, amid their tidying up, and leave them. Their errors are for who asks.
    """
    cancelled: asyncio.CancelledError | None = None
    while waiting := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError as error:
            cancelled = error
    for task in tasks:
        take_note(task)
    if cancelled is not None:
        raise cancelled


def take_note(task: asyncio.Future[Any]) -> None:
    """Ask a task that has ended for its error, else asyncio logs that nobody did.

    A done-callback of what is waited for through a `shield`: one whose waiters are cancelled no
    longer asks.
    """
    task.cancelled() or task.exception()
