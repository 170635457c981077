"""Run the calls of one worker: sync tools each in a thread, async ones on the worker's event loop.

Only an async call can be ended from here, by cancelling it at its deadline. What does not end, a
stuck thread or a blocked loop, is the controller's to see: it has the same clock, and the whole
process to kill.
"""

import asyncio
import inspect
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any, Protocol

from rnow.core.arguments import ArgumentError
from rnow.core.counts import collecting
from rnow.records import ToolOutcome
from rnow.tools.base import ToolSpec
from rnow.tools.limit import TokenLimiter
from rnow.tools.mcp.spec import McpCallError
from rnow.tools.texts import error_of, result_of, timed_out, tool_error

Message = Mapping[str, Any]


class Tool(Protocol):
    """What can be called: a function of tools.py, or what an MCP server has."""

    @property
    def spec(self) -> ToolSpec: ...

    def invoke(
        self, arguments: Mapping[str, Any], *, metadata: Mapping[str, Any], rollout: str
    ) -> Any: ...


class CallRunner:
    """Takes `call` messages from any thread and gives `answer` messages to `reply`, from any
    thread.
    """

    def __init__(
        self,
        tools: Mapping[str, Tool],
        *,
        limiter: TokenLimiter,
        loop: asyncio.AbstractEventLoop,
        reply: Callable[[Message], None],
    ) -> None:
        self._tools = tools
        self._limiter = limiter
        self._loop = loop
        self._reply = reply
        # JSON and tokens of a big result take a second: not on the loop, and not in the loop's own
        # executor, which tools may have filled.
        self._finishers = ThreadPoolExecutor(2, thread_name_prefix="finish")

    def start(self, call: Message) -> None:
        """Begin a call; returns at once."""
        if self._tools[call["name"]].spec.is_async:
            asyncio.run_coroutine_threadsafe(self._run_async(call), self._loop)
            return
        try:
            Thread(target=self._run_sync, args=(call,), daemon=True).start()
        except RuntimeError as error:  # no more threads to be had
            self._fail(call, error, {})

    def _run_sync(self, call: Message) -> None:
        counts: dict[str, int] = {}
        # asyncio.run, plain or patched by nest_asyncio, wants a loop of this thread's own.
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            with collecting(counts):
                value = self._invoke(call)
            if inspect.isawaitable(value):
                awaiting = asyncio.run_coroutine_threadsafe(_await(value, counts), self._loop)
                value = awaiting.result()
            self._finish(call, value, counts)
        except BaseException as error:  # the user's code: SystemExit, too, is an answer
            self._fail(call, error, counts)
        finally:
            if not loop.is_closed():
                loop.close()

    async def _run_async(self, call: Message) -> None:
        counts: dict[str, int] = {}
        deadline = asyncio.timeout(call["timeout_s"])
        try:
            async with deadline:
                value = await _await(self._invoke(call), counts)
            await self._loop.run_in_executor(self._finishers, self._finish, call, value, counts)
        except BaseException as error:  # the user's code: SystemExit must not end the event loop
            if deadline.expired():
                text = timed_out(call["name"], call["timeout_s"])
                self._answer(call, text, outcome=ToolOutcome.TIMEOUT, counts=counts)
            else:
                self._fail(call, error, counts)

    def _invoke(self, call: Message) -> Any:
        tool, metadata = self._tools[call["name"]], call["metadata"]
        return tool.invoke(call["arguments"], metadata=metadata, rollout=call["rollout"])

    def _finish(self, call: Message, value: Any, counts: Mapping[str, int]) -> None:
        self._answer(call, result_of(value), outcome=ToolOutcome.OK, counts=counts)

    def _fail(self, call: Message, error: BaseException, counts: Mapping[str, int]) -> None:
        if isinstance(error, ArgumentError):
            text, outcome = tool_error(str(error)), ToolOutcome.MODEL_ERROR
            self._answer(call, text, outcome=outcome, counts=counts)
            return
        now = time.strftime("%H:%M:%S")
        # What a server said has no place in any file.
        is_a_servers = isinstance(error, McpCallError)
        trace = f"{error}\n" if is_a_servers else "\n" + "".join(traceback.format_exception(error))
        print(
            f"{now} tool {call['name']!r} in rollout {call['rollout']} raised: {trace}",
            file=sys.__stderr__,
        )
        self._answer(call, error_of(error), outcome=ToolOutcome.ERROR, counts=counts)

    def _answer(
        self, call: Message, text: str, *, outcome: ToolOutcome, counts: Mapping[str, int]
    ) -> None:
        text, truncated = self._limiter.cut(text)
        answer = {"text": text, "outcome": outcome, "truncated": truncated, "counts": counts}
        self._reply({"type": "answer", "id": call["id"], **answer})


async def _await(value: Any, counts: dict[str, int]) -> Any:
    with collecting(counts):
        return await value
