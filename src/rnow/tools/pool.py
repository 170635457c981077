"""ToolPool: runs tool calls in worker processes, whatever the tools do.

    call ──▶ can it be made at all? ──▶ the worker of its prompt ──▶ answer, before its deadline
                 │ no                        │ past the deadline      │ died
                 ▼                           ▼                        ▼
              MODEL_ERROR                 TIMEOUT; the worker      ERROR; once more where
                                          is replaced              the tool is read-only

All rollouts of a prompt go to one worker and share what it keeps of pages; where that one is being
replaced they go to the next. A replaced worker ends the calls that it holds, beside its successor,
and is then killed. A rollout that has a session at an MCP server stays with that
worker; with it the session is lost, and the model is told so.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from rnow.core.arguments import ArgumentError
from rnow.errors import DeadlineError, RnowError, ToolDefinitionError
from rnow.records import RolloutId, ToolOutcome
from rnow.runtime.side_by_side import each_to_its_end, end_tasks, take_note
from rnow.tools.base import ToolAnswer, ToolCall, ToolSchema, ToolSpec, checked_arguments
from rnow.tools.env import load_dotenv, worker_environment
from rnow.tools.limit import TokenLimiter
from rnow.tools.mcp.spec import McpSpec, fill_in
from rnow.tools.process import WorkerGone, WorkerProcess
from rnow.tools.settings import WorkerSettings
from rnow.tools.texts import session_gone, timed_out, tool_error, worker_died

_log = logging.getLogger(__name__)
_MAX_STARTS = 3  # of one replacement in a row


class ToolPool:
    """A ToolRunner over worker processes.

    async with ToolPool(settings) as pool:
        answer = await pool.call(call, rollout=id, allowed=None, metadata={})
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.notices: tuple[str, ...] = ()
        self.num_replaced = 0  # workers that died or got stuck
        self._settings = settings
        self._environment: dict[str, str] = {}
        self._limiter = TokenLimiter(None, None)
        self._specs: dict[str, ToolSpec] = {}
        self._slots: list[asyncio.Task[WorkerProcess]] = []
        self._servers: tuple[McpSpec, ...] = ()
        self._running: set[asyncio.Task[ToolAnswer]] = set()
        # Those that use sessions of their rollout.
        self._in_session: dict[RolloutId, set[asyncio.Task[ToolAnswer]]] = {}
        self._holders: dict[RolloutId, tuple[int, WorkerProcess]] = {}  # of sessions
        self._leaving: dict[asyncio.Task[None], WorkerProcess] = {}

    async def __aenter__(self) -> "ToolPool":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Start all workers, side by side.

        Raises ToolDefinitionError, ConfigError (.env, tools.env) or DeadlineError.
        """
        settings = self._settings
        self._environment = worker_environment(
            settings.project_dir,
            shell=os.environ,
            names=settings.env_names,
            kept=settings.kept_environ,
        )
        # As in a worker, the shell wins over .env.
        variables = load_dotenv(settings.project_dir / ".env") | os.environ
        self._servers = fill_in(settings.mcp, variables)
        settings.log_file.parent.mkdir(parents=True, exist_ok=True)
        self._limiter = await asyncio.to_thread(
            TokenLimiter,
            settings.tokenizer_file,
            settings.max_tool_response,
            max_chars=settings.max_tool_response_chars,
        )
        self._slots = [
            asyncio.create_task(self._start_worker(slot)) for slot in range(self._settings.workers)
        ]
        try:
            workers = await asyncio.gather(*self._slots)
            if any(worker.specs != workers[0].specs for worker in workers):
                raise ToolDefinitionError(
                    "the workers were given different tools: an MCP server must have the same for "
                    "all of its sessions"
                )
        except BaseException:
            await self.aclose()
            raise
        self._specs = {spec.schema.name: spec for spec in workers[0].specs}
        self.notices = workers[0].notices

    @property
    def schemas(self) -> tuple[ToolSchema, ...]:
        return tuple(spec.schema for spec in self._specs.values())

    async def call(
        self,
        call: ToolCall,
        *,
        rollout: RolloutId,
        allowed: tuple[str, ...] | None,
        metadata: Mapping[str, Any],
    ) -> ToolAnswer:
        """Run one call. Raises only where a worker could not be replaced."""
        schemas = {name: spec.schema for name, spec in self._specs.items()}
        try:
            arguments = checked_arguments(call, schemas=schemas, allowed=allowed)
        except ArgumentError as error:
            text = tool_error(str(error))
            return self._own_answer(text, ToolOutcome.MODEL_ERROR, duration_s=0.0)
        spec = self._specs[call.name]
        message = {
            "name": call.name,
            "arguments": arguments,
            "metadata": dict(metadata),
            "rollout": str(rollout),
            "timeout_s": spec.timeout_s or self._settings.tool_timeout_s,
        }
        # A rollout that gives up does not end the tool: the call keeps its place and its deadline.
        running = asyncio.create_task(self._run(message, spec=spec, rollout=rollout))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        running.add_done_callback(take_note)
        if self._has_session(spec):
            self._in_session.setdefault(rollout, set()).add(running)
        return await asyncio.shield(running)

    def release(self, rollout: RolloutId) -> None:
        """Close the rollout's sessions with MCP servers; calls that still use them are dropped."""
        for running in self._in_session.pop(rollout, ()):
            running.cancel()
        _, holder = self._holders.pop(rollout, (None, None))
        if holder is not None:
            holder.release(str(rollout))

    def _has_session(self, spec: ToolSpec) -> bool:
        return spec.server is not None and self._settings.mcp.per_rollout

    async def aclose(self) -> None:
        """End all workers, and with them the calls that they hold."""
        starting = {slot for slot in self._slots if not slot.done()}
        leaving = list(self._leaving.values())
        try:
            await end_tasks(*self._running, *starting, *self._leaving)
        finally:
            workers = {
                slot.result()
                for slot in self._slots
                if slot.done() and not slot.cancelled() and not slot.exception()
            }
            await each_to_its_end(
                *(worker.stop() for worker in workers),
                *(worker.kill() for worker in leaving),
            )
            self._slots.clear()

    async def _run(
        self, message: Mapping[str, Any], *, spec: ToolSpec, rollout: RolloutId
    ) -> ToolAnswer:
        timeout_s = message["timeout_s"]
        limit_s = timeout_s + self._settings.grace_s if spec.is_async else timeout_s
        may_repeat = spec.read_only
        while True:
            has_session = self._has_session(spec)
            if has_session and rollout in self._holders:
                slot, worker = self._holders[rollout]
                if not worker.accepting:
                    del self._holders[rollout]
                    text, counts = session_gone(), {"mcp/lost_sessions": 1}
                    return self._own_answer(text, ToolOutcome.ERROR, duration_s=0.0, counts=counts)
            else:
                slot, worker = await self._pick(rollout.prompt)
            async with worker.slots:
                started = time.monotonic()
                if not worker.accepting:
                    continue  # it fell ill while this call waited for its turn
                if has_session:
                    self._holders[rollout] = slot, worker
                try:
                    answer = await worker.call(message, limit_s=limit_s)
                    return _answer_of(answer, duration_s=time.monotonic() - started)
                except DeadlineError as error:
                    self._replace(slot, worker, reason=str(error))
                    text, outcome = timed_out(spec.schema.name, timeout_s), ToolOutcome.TIMEOUT
                except WorkerGone:
                    self._replace(slot, worker, reason=f"it ended while it ran {spec.schema.name}")
                    if may_repeat:
                        may_repeat = False
                        continue
                    text, outcome = worker_died(spec.schema.name), ToolOutcome.ERROR
                return self._own_answer(text, outcome, duration_s=time.monotonic() - started)

    async def _pick(self, prompt: int) -> tuple[int, WorkerProcess]:
        """Return the first worker, from the prompt's own on, that takes calls; wait where none
        does.
        """
        while True:
            for offset in range(self._settings.workers):
                slot = (prompt + offset) % self._settings.workers
                if not self._slots[slot].done():
                    continue
                worker = self._slots[slot].result()  # raises what kept a replacement from starting
                if worker.accepting:
                    return slot, worker
                self._replace(slot, worker, reason="it ended")
            await asyncio.wait(self._slots, return_when=asyncio.FIRST_COMPLETED)

    def _replace(self, slot: int, worker: WorkerProcess, *, reason: str) -> None:
        current = self._slots[slot]
        if not current.done() or current.exception() or current.result() is not worker:
            return  # another call came first
        _log.warning("%s is replaced: %s", worker.name, reason)
        self.num_replaced += 1
        worker.accepting = False
        leaving = asyncio.create_task(self._retire(slot, worker))
        self._leaving[leaving] = worker
        leaving.add_done_callback(lambda task: self._leaving.pop(task, None))
        self._slots[slot] = asyncio.create_task(self._start_replacement(slot))

    async def _retire(self, slot: int, worker: WorkerProcess) -> None:
        await worker.retire()
        if worker.sessions:
            with suppress(RnowError, OSError):  # whoever calls next is told of these
                successor = await asyncio.shield(self._slots[slot])
                successor.end_sessions(worker.sessions)

    async def _start_replacement(self, slot: int) -> WorkerProcess:
        for attempt in range(1, _MAX_STARTS + 1):
            try:
                worker = await self._start_worker(slot)
                break
            except (RnowError, OSError) as error:
                if attempt == _MAX_STARTS:
                    raise
                _log.warning("worker %d could not be started: %s", slot, error)
        if {spec.schema.name: spec for spec in worker.specs} != self._specs:
            await worker.kill()
            raise ToolDefinitionError(
                "tools.py: its tools are no longer those that this run began with; "
                "start a run anew to use the changed file"
            )
        return worker

    async def _start_worker(self, slot: int) -> WorkerProcess:
        return await WorkerProcess.start(
            self._settings,
            environment=self._environment,
            name=f"tool worker {slot}",
            servers=self._servers,
            known=list(self._specs.values()) or None,
        )

    def _own_answer(
        self,
        text: str,
        outcome: ToolOutcome,
        *,
        duration_s: float,
        counts: Mapping[str, int] | None = None,
    ) -> ToolAnswer:
        text, truncated = self._limiter.cut(text)
        return ToolAnswer(
            text=text,
            outcome=outcome,
            duration_s=duration_s,
            truncated=truncated,
            counts=counts or {},
        )


def _answer_of(message: Mapping[str, Any], *, duration_s: float) -> ToolAnswer:
    return ToolAnswer(
        text=message["text"],
        outcome=ToolOutcome(message["outcome"]),
        duration_s=duration_s,
        truncated=message["truncated"],
        counts=message["counts"],
    )
