"""One thread for all that is done to the student's network.

Each thread of a C program keeps the memory that it once had: of updates that ran in whichever
thread was free, every thread kept its largest. The demo took 1.2 GB more in 6 steps so.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rnow-trainer")

Value = TypeVar("Value")
Given = ParamSpec("Given")


async def in_trainer_thread(
    work: Callable[Given, Value], *args: Given.args, **kwargs: Given.kwargs
) -> Value:
    """Return what `work` returns; the event loop goes on meanwhile. One after another."""
    context = contextvars.copy_context()
    called = partial(context.run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_THREAD, called)
