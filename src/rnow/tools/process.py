"""The controller's handle on one tool worker process: its start, its calls, its end.

Its standard output and error are the log from the first instant: prints of C libraries and of child
processes land there.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rnow.browser.chromium.stand_in import stand_in
from rnow.errors import DeadlineError, ToolDefinitionError
from rnow.runtime.channel import Channel
from rnow.runtime.child_process import how_it_ended
from rnow.runtime.deadline import within
from rnow.runtime.kill_points import point
from rnow.runtime.side_by_side import end_tasks, take_note
from rnow.tools.base import ToolSpec
from rnow.tools.hanging import STACKS_SIGNAL, place_of_hang
from rnow.tools.mcp.spec import McpSpec
from rnow.tools.settings import WorkerSettings

_log = logging.getLogger(__name__)
_MAX_QUOTED_CHARS = 500
_WATCH_LIMIT_S = 10.0  # of a process that has ended, with its socket closed


class WorkerGone(Exception):
    """The worker process ended while it held a call."""


class WorkerProcess:
    """One running worker. `start` makes it; it ends by `stop`, by `kill`, or by itself."""

    def __init__(
        self,
        name: str,
        channel: Channel,
        *,
        settings: WorkerSettings,
        log_start: int,
    ) -> None:
        self.name = name
        self.specs: tuple[ToolSpec, ...] = ()
        self.notices: tuple[str, ...] = ()
        self.accepting = True  # takes new calls
        self.sessions: set[tuple[int, str]] = set()  # of (MCP server, id), that it would leave open
        self.slots = asyncio.Semaphore(settings.concurrency)
        self._channel = channel
        self._process = channel.process
        self._settings = settings
        self._log_start = log_start  # where in the log its own words begin
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._num_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        settings: WorkerSettings,
        *,
        environment: Mapping[str, str],
        name: str,
        servers: Sequence[McpSpec] = (),
        known: Sequence[ToolSpec] | None = None,
    ) -> "WorkerProcess":
        """Start a process, let it import tools.py and ask MCP servers for their tools.

        `known`: all tools that there are; then no server is asked.
        Raises ToolDefinitionError where that cannot be done, DeadlineError where it takes too long.
        """
        worker = await cls._spawn(settings, environment=environment, name=name)
        try:
            async with within(settings.start_timeout_s, f"tools: the import of tools.py in {name}"):
                await worker._introduce(_mcp_message(settings, servers, known))
        except DeadlineError as error:
            try:
                place = await worker._place_of_hang()
            finally:
                await worker.kill()
            said = f"{place}: {error}" if place else error
            raise DeadlineError(
                f"{said}; move what takes so long into a tool, where it has a deadline of its own"
            ) from error
        except BaseException:
            await worker.kill()
            raise
        worker._watching = asyncio.create_task(worker._watch(), name=f"{name}: watch")
        worker._watching.add_done_callback(take_note)
        return worker

    async def call(self, message: Mapping[str, Any], *, limit_s: float) -> dict[str, Any]:
        """Return the worker's answer. Raises DeadlineError or WorkerGone."""
        if not self.accepting:
            raise WorkerGone(self.name)
        self._num_calls += 1
        call_id = self._num_calls
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(take_note)  # where sending fails, nobody comes to ask for it
        self._pending[call_id] = answer
        self._idle.clear()
        try:
            async with within(limit_s, f"tools: {message['name']} in {self.name}"):
                await self._channel.send({"type": "call", "id": call_id, **message})
                point("tool/called")
                return await answer
        except ConnectionError as error:
            raise WorkerGone(self.name) from error
        finally:
            del self._pending[call_id]
            if not self._pending:
                self._idle.set()

    async def retire(self) -> None:
        """Take no new calls, write all stacks to the log, let the running calls end, then kill.

        Each running call has its own deadline, so this ends. A worker that still can, closes its
        sessions with MCP servers first.
        """
        self.accepting = False
        self._process.signal(STACKS_SIGNAL)
        await asyncio.sleep(0.1)  # for the stacks to be written
        await self._idle.wait()
        await (self.stop() if self._settings.mcp.servers else self.kill())

    async def stop(self) -> None:
        """Let the process end by itself for a moment, then kill what is left of its group."""
        self.accepting = False
        try:
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(self._settings.stop_timeout_s):
                    await self._channel.send({"type": "stop"})
                    await self._process.wait()
        finally:
            await self.kill()

    async def kill(self) -> None:
        """Kill the whole process group, now. Calls that it held raise WorkerGone."""
        self.accepting = False
        await self._channel.close()
        if self._watching is not None:
            async with within(_WATCH_LIMIT_S, f"tools: the last answers of {self.name}"):
                await asyncio.wait({self._watching})

    @classmethod
    async def _spawn(
        cls, settings: WorkerSettings, *, environment: Mapping[str, str], name: str
    ) -> "WorkerProcess":
        logs = settings.log_file.absolute().parent
        browsers = stand_in(settings.browser.executable, logs / "browsers", shell=environment)
        log = settings.log_file
        log_start = log.stat().st_size if log.exists() else 0
        channel = await Channel.open(
            "rnow.tools.worker",
            # crawl4ai keeps a folder of its own; without this it would be in the home.
            environment={
                "CRAWL4_AI_BASE_DIRECTORY": str(logs / "crawl4ai"),
                **browsers,
                **environment,
            },
            log_file=log,
            folder=settings.project_dir,
        )
        return cls(name, channel, settings=settings, log_start=log_start)

    def release(self, rollout: str) -> None:
        """Close the rollout's sessions with MCP servers."""
        self._channel.post({"type": "release", "rollout": rollout})

    def end_sessions(self, sessions: set[tuple[int, str]]) -> None:
        """Close what another worker, which has ended, left open."""
        self._channel.post({"type": "end_sessions", "sessions": sorted(sessions)})

    async def _introduce(self, mcp: Mapping[str, Any] | None) -> None:
        settings = self._settings
        await self._channel.send(
            {
                "type": "start",
                "tools_dir": str((settings.tools_dir or settings.project_dir).resolve()),
                "tokenizer_file": settings.tokenizer_file
                and str(settings.tokenizer_file.resolve()),
                "max_tokens": settings.max_tool_response,
                "max_chars": settings.max_tool_response_chars,
                "browser": dataclasses.asdict(settings.browser),
                "mcp": mcp,
            }
        )
        message = await self._channel.receive()
        while message is not None and message["type"] == "session":
            self._note_session(message)
            message = await self._channel.receive()
        if message is None:
            how = how_it_ended(await self._process.wait())
            raise ToolDefinitionError(
                f"tools.py: the process that imports it ended ({how}); "
                f"{_printed(settings.log_file, since=self._log_start)}"
            )
        if message["type"] == "unusable":
            raise ToolDefinitionError(message["message"])
        self.specs = tuple(ToolSpec.from_json(fields) for fields in message["tools"])
        self.notices = tuple(message["notices"])

    async def _place_of_hang(self) -> str | None:
        folder = self._settings.tools_dir or self._settings.project_dir
        log_file, since = self._settings.log_file, self._log_start
        return await place_of_hang(self._process, log_file, since=since, folder=folder)

    async def _watch(self) -> None:
        """Hand out answers until the process has ended, or has closed its end of the socket."""
        reading = asyncio.create_task(self._read_answers(), name=f"{self.name}: answers")
        ended = asyncio.create_task(self._process.wait(), name=f"{self.name}: end")
        await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
        expected = not self.accepting
        self.accepting = False
        # Ended, it may have left answers in the socket, which a child process may hold open for
        # ever; with the socket closed, it may still be running its exit handlers.
        await asyncio.wait({reading, ended}, timeout=self._settings.stop_timeout_s)
        await end_tasks(reading, ended)
        num_held = len(self._pending)
        try:
            await self._process.kill()
        finally:  # also of one that the kernel cannot end, nobody waits any more
            for answer in self._pending.values():
                if not answer.done():
                    answer.set_exception(WorkerGone(self.name))
        if not expected:
            _log.warning(
                "%s ended (%s) while it ran %d calls",
                self.name,
                how_it_ended(await self._process.wait()),
                num_held,
            )

    def _note_session(self, message: Mapping[str, Any]) -> None:
        change = self.sessions.add if message["open"] else self.sessions.discard
        change((message["server"], message["session"]))

    async def _read_answers(self) -> None:
        while (message := await self._channel.receive()) is not None:
            if message["type"] == "session":
                self._note_session(message)
                continue
            answer = self._pending.get(message["id"])
            if answer is not None and not answer.done():  # else its deadline has passed
                answer.set_result(message)


def _mcp_message(
    settings: WorkerSettings, servers: Sequence[McpSpec], known: Sequence[ToolSpec] | None
) -> dict[str, Any] | None:
    if not servers:
        return None
    theirs = (
        None if known is None else [dataclasses.asdict(s) for s in known if s.server is not None]
    )
    return {
        "servers": [server.as_json() for server in servers],
        "per_rollout": settings.mcp.per_rollout,
        "known": theirs,
        "folder": str(settings.project_dir.resolve()),
        "logs": str(settings.log_file.absolute().parent),
    }


def _printed(log_file: Path, *, since: int) -> str:
    """Quote the end of what a worker printed: its log may be gone when the user reads this."""
    text = log_file.read_bytes()[since:].decode(errors="replace").strip()
    return f"it printed: {text[-_MAX_QUOTED_CHARS:]}" if text else "it printed nothing"
