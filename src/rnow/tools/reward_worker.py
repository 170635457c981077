"""The reward worker: `python -m rnow.tools.reward_worker`, started by rnow.tools.rewards.

It imports rewards.py, which is the user's code and may do anything, and answers one call at a
time: a reward's value, or what graders say. What hangs is ended from outside, with the process;
where the controller is gone the thread that reads its calls ends it.
"""

import faulthandler
import math
import os
import sys
import traceback
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from rnow.core.grader import GRADER_REGISTRY
from rnow.core.reward import REWARD_REGISTRY, RewardArgs
from rnow.errors import GradingError, ToolDefinitionError
from rnow.runtime.channel import pack, receive, socket_of_worker
from rnow.tools.graders import answer_call, awaited
from rnow.tools.hanging import STACKS_SIGNAL
from rnow.tools.loader import import_project_file

_MAX_SHOWN_CHARS = 100


def main() -> None:
    """Answer calls until the controller is gone."""
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    stream = socket_of_worker()
    start = receive(stream)
    if start is None:
        return
    try:
        import_project_file(Path(start["file"]))
    except ToolDefinitionError as error:
        stream.sendall(pack({"type": "unusable", "message": str(error)}))
        sys.exit(1)
    stream.sendall(pack({"type": "ready", **_describe()}))
    calls: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def read_calls() -> None:
        while (call := receive(stream)) is not None:
            calls.put(call)
        os._exit(1)

    Thread(target=read_calls, daemon=True).start()
    while True:
        stream.sendall(pack(_answer(calls.get(), secrets=start["secrets"])))


def _describe() -> dict[str, Any]:
    return {
        "rewards": {
            name: {"timeout_s": function._timeout, "is_precondition": function._is_precondition}
            for name, function in REWARD_REGISTRY.items()
        },
        "graders": {
            name: {
                "timeout_s": function._timeout,
                "takes_metadata": function._takes_metadata,
            }
            for name, function in GRADER_REGISTRY.items()
        },
    }


def _answer(call: Mapping[str, Any], *, secrets: Mapping[str, str]) -> dict[str, Any]:
    try:
        if call["type"] != "reward":
            return answer_call(GRADER_REGISTRY, call)
        return _reward(call, secrets=secrets)
    except GradingError as error:
        return {"error": str(error)}
    except BaseException as error:  # the user's code: SystemExit, too, is an answer
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _reward(call: Mapping[str, Any], *, secrets: Mapping[str, str]) -> dict[str, Any]:
    function = REWARD_REGISTRY[call["name"]]
    args = RewardArgs(metadata=call["metadata"], variables=call["variables"], secrets=dict(secrets))
    value = awaited(function(args, call["messages"]))
    number = as_number(value)
    if number is None:
        return {"error": f"returned {repr(value)[:_MAX_SHOWN_CHARS]}, which is no finite number"}
    return {"value": number}


def as_number(value: Any) -> float | None:
    """Return what a reward gave as a float, be it numpy's; None for all but finite numbers."""
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:  # an integer beyond all floats
        number = math.inf
    return number if math.isfinite(number) else None


if __name__ == "__main__":
    main()
