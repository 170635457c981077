"""The controller's handle on one tool worker process: its start, its calls, its end.

The process leads a session of its own, so that Ctrl-C does not reach it and its whole group can be
killed. Its standard output and error are the log from the first instant: prints of C libraries and
of child processes land there.
"""

import asyncio
import dataclasses
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rnow.browser.chromium.stand_in import stand_in
from rnow.errors import DeadlineError, ToolDefinitionError
from rnow.runtime.deadline import within
from rnow.runtime.kill_points import point
from rnow.tools.settings import WorkerSettings
from rnow.tools.spec import ToolSpec
from rnow.tools.wire import pack, receive_async

_log = logging.getLogger(__name__)
_MAX_QUOTED_CHARS = 500
_KILL_LIMIT_S = 10.0  # SIGKILL to reaped: more means a process that the kernel cannot end


class WorkerGone(Exception):
    """The worker process ended while it held a call."""


class WorkerProcess:
    """One running worker. `start` makes it; it ends by `stop`, by `kill`, or by itself."""

    def __init__(
        self,
        name: str,
        process: asyncio.subprocess.Process,
        *,
        stream: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        lifeline_fd: int,
        settings: WorkerSettings,
    ) -> None:
        self.name = name
        self.specs: tuple[ToolSpec, ...] = ()
        self.notices: tuple[str, ...] = ()
        self.accepting = True  # takes new calls
        self.slots = asyncio.Semaphore(settings.concurrency)
        self._process = process
        self._reader, self._writer = stream
        self._lifeline_fd = lifeline_fd
        self._settings = settings
        self._log_start = 0  # where in the log its own words begin
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._num_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, settings: WorkerSettings, *, environment: Mapping[str, str], name: str
    ) -> "WorkerProcess":
        """Start a process and let it import tools.py.

        Raises ToolDefinitionError where that cannot be done, DeadlineError where it takes too long.
        """
        worker = await cls._spawn(settings, environment=environment, name=name)
        try:
            async with within(settings.start_timeout_s, f"tools: the import of tools.py in {name}"):
                await worker._introduce()
        except DeadlineError as error:
            await worker.kill()
            raise DeadlineError(
                f"{error}; move what takes so long into a tool, where it has a deadline of its own"
            ) from error
        except BaseException:
            await worker.kill()
            raise
        worker._watching = asyncio.create_task(worker._watch(), name=f"{name}: watch")
        return worker

    async def call(self, message: Mapping[str, Any], *, limit_s: float) -> dict[str, Any]:
        """Return the worker's answer. Raises DeadlineError or WorkerGone."""
        if not self.accepting:
            raise WorkerGone(self.name)
        self._num_calls += 1
        call_id = self._num_calls
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[call_id] = answer
        self._idle.clear()
        try:
            async with within(limit_s, f"tools: {message['name']} in {self.name}"):
                await self._send({"type": "call", "id": call_id, **message})
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

        Each running call has its own deadline, so this ends.
        """
        self.accepting = False
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(0.1)  # for the stacks to be written
        await self._idle.wait()
        await self.kill()

    async def stop(self) -> None:
        """Let the process end by itself for a moment, then kill what is left of its group."""
        self.accepting = False
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(self._settings.stop_timeout_s):
                await self._send({"type": "stop"})
                await self._process.wait()
        await self.kill()

    async def kill(self) -> None:
        """Kill the whole process group, now. Calls that it held raise WorkerGone."""
        self.accepting = False
        self._kill_group()
        async with within(_KILL_LIMIT_S, f"tools: the end of {self.name} after SIGKILL"):
            await self._process.wait()
            if self._watching is not None:
                await asyncio.wait({self._watching})
        self._writer.transport.abort()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
        if self._lifeline_fd >= 0:
            os.close(self._lifeline_fd)
            self._lifeline_fd = -1

    @classmethod
    async def _spawn(
        cls, settings: WorkerSettings, *, environment: Mapping[str, str], name: str
    ) -> "WorkerProcess":
        ours, theirs = socket.socketpair()
        lifeline_theirs, lifeline_ours = os.pipe()
        logs = settings.log_file.absolute().parent
        browsers = stand_in(settings.browser.executable, logs / "browsers", shell=environment)
        try:
            with open(settings.log_file, "ab") as log:
                log_start = log.tell()
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    # -P: the project's own files must not stand before the standard library's.
                    *("-P", "-u", "-m", "rnow.tools.worker"),
                    *(str(theirs.fileno()), str(lifeline_theirs)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(theirs.fileno(), lifeline_theirs),
                    cwd=settings.project_dir,
                    # crawl4ai keeps a folder of its own; without this it would be in the home.
                    env={
                        "CRAWL4_AI_BASE_DIRECTORY": str(logs / "crawl4ai"),
                        **browsers,
                        **environment,
                    },
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            os.close(lifeline_ours)
            raise
        finally:
            theirs.close()
            os.close(lifeline_theirs)
        stream = await asyncio.open_connection(sock=ours)
        worker = cls(name, process, stream=stream, lifeline_fd=lifeline_ours, settings=settings)
        worker._log_start = log_start
        return worker

    async def _introduce(self) -> None:
        settings = self._settings
        await self._send(
            {
                "type": "start",
                "tools_dir": str((settings.tools_dir or settings.project_dir).resolve()),
                "tokenizer_file": settings.tokenizer_file
                and str(settings.tokenizer_file.resolve()),
                "max_tokens": settings.max_tool_response,
                "max_chars": settings.max_tool_response_chars,
                "browser": dataclasses.asdict(settings.browser),
            }
        )
        message = await receive_async(self._reader)
        if message is None:
            how = _ending(await self._process.wait())
            raise ToolDefinitionError(
                f"tools.py: the process that imports it ended ({how}); "
                f"{_printed(settings.log_file, since=self._log_start)}"
            )
        if message["type"] == "unusable":
            raise ToolDefinitionError(message["message"])
        self.specs = tuple(ToolSpec.from_json(fields) for fields in message["tools"])
        self.notices = tuple(message["notices"])

    async def _send(self, message: Mapping[str, Any]) -> None:
        self._writer.write(pack(message))
        await self._writer.drain()

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
        self._kill_group()
        for task in (reading, ended):
            task.cancel()
        status = await self._process.wait()
        if not expected:
            _log.warning(
                "%s ended (%s) while it ran %d calls",
                self.name,
                _ending(status),
                len(self._pending),
            )
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(WorkerGone(self.name))

    async def _read_answers(self) -> None:
        while (message := await receive_async(self._reader)) is not None:
            answer = self._pending.get(message["id"])
            if answer is not None and not answer.done():  # else its deadline has passed
                answer.set_result(message)

    def _kill_group(self) -> None:
        # The guardian keeps the group's number ours, also when the worker has ended.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _printed(log_file: Path, *, since: int) -> str:
    """Quote the end of what a worker printed: its log may be gone when the user reads this."""
    text = log_file.read_bytes()[since:].decode(errors="replace").strip()
    return f"it printed: {text[-_MAX_QUOTED_CHARS:]}" if text else "it printed nothing"


def _ending(status: int) -> str:
    return f"exit code {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
