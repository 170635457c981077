"""How often servers have ended since the run last got a step done: above a limit it stops."""

import asyncio

from rnow.errors import ServerError

MAX_DEATHS = 3
_RUN = (
    f"vLLM servers ended {MAX_DEATHS} times without a finished step in between. The last time, "
    "{sentence}\nIf memory ran out: lower engine.gpu_memory_utilization, or begin another run with "
    "a smaller rollout.max_context_window (--fresh). If requests take too long: raise "
    "engine.request_timeout_s. What is done is saved; the same command goes on"
)
_ALONE = (
    f"vLLM servers ended {MAX_DEATHS} times. The last time, "
    "{sentence}\nIf memory ran out: lower engine.gpu_memory_utilization or "
    "rollout.max_context_window. If requests take too long: raise engine.request_timeout_s"
)


class Deaths:
    """The ends of all servers of a run; one object for both roles.

    `in_run` False: of an evaluation or a test, which has no steps, and nothing to go on with.
    """

    def __init__(self, *, in_run: bool = True) -> None:
        self._num = 0
        self._in_run = in_run
        # One server after another: vLLM measures how much memory is free while it starts.
        self.starting = asyncio.Lock()

    def count(self, sentence: str) -> None:
        """Count one end, of which `sentence` says why; raise ServerError with the last allowed."""
        self._num += 1
        if self._num >= MAX_DEATHS:
            raise ServerError((_RUN if self._in_run else _ALONE).format(sentence=sentence))

    def forget(self) -> None:
        """A step is finished: what ended before it was survived."""
        self._num = 0
