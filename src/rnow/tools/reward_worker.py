"""The reward worker: `python -m rnow.tools.reward_worker`, started by rnow.tools.rewards.

It imports rewards.py, which is the user's code and may do anything, and computes one value at a
time. What hangs is ended from outside, with the process; where the controller is gone the thread
that reads its calls ends it.
"""

import asyncio
import inspect
import math
import os
import sys
import traceback
from collections.abc import Awaitable, Mapping
from numbers import Real
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from rnow.core.reward import REWARD_REGISTRY, RewardArgs
from rnow.errors import ToolDefinitionError
from rnow.tools.loader import import_project_file
from rnow.tools.wire import pack, receive, socket_of_worker

_MAX_SHOWN_CHARS = 100


def main() -> None:
    """Answer calls until the controller is gone."""
    stream = socket_of_worker()
    start = receive(stream)
    if start is None:
        return
    try:
        import_project_file(Path(start["file"]))
    except ToolDefinitionError as error:
        stream.sendall(pack({"type": "unusable", "message": str(error)}))
        sys.exit(1)
    stream.sendall(pack({"type": "ready", "rewards": _describe()}))
    calls: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def read_calls() -> None:
        while (call := receive(stream)) is not None:
            calls.put(call)
        os._exit(1)

    Thread(target=read_calls, daemon=True).start()
    while True:
        stream.sendall(pack(_answer(calls.get(), secrets=start["secrets"])))


def _describe() -> dict[str, dict[str, Any]]:
    return {
        name: {"timeout_s": function._timeout, "is_precondition": function._is_precondition}
        for name, function in REWARD_REGISTRY.items()
    }


def _answer(call: Mapping[str, Any], *, secrets: Mapping[str, str]) -> dict[str, Any]:
    function = REWARD_REGISTRY[call["name"]]
    args = RewardArgs(metadata=call["metadata"], variables=call["variables"], secrets=dict(secrets))
    try:
        value = function(args, call["messages"])
        if inspect.isawaitable(value):  # also what a plain function has not awaited
            value = asyncio.run(_awaited(value))
        number = as_number(value)
        if number is None:
            return {
                "error": f"returned {repr(value)[:_MAX_SHOWN_CHARS]}, which is no finite number"
            }
    except BaseException as error:  # the user's code: SystemExit, too, is an answer
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    return {"value": number}


def as_number(value: Any) -> float | None:
    """Return what a reward gave as a float, be it numpy's; None for all but finite numbers."""
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:  # an integer beyond all floats
        number = math.inf
    return number if math.isfinite(number) else None


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


if __name__ == "__main__":
    main()
