"""A vLLM server as a child process: its start, its end, and what it said last.

The process leads a group of its own that is killed when this process ends, by SIGKILL too. When it
dies, whoever is told is told with the last meaningful lines of its log: "connection refused" helps
nobody. Restarting is the caller's: a server that has ended stays ended.
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from rnow.engines.vllm.address import new_socket, prepare_folder
from rnow.engines.vllm.command import VllmServerSettings, command, environment, served_name
from rnow.engines.vllm.http import PAUSES_S, HttpError, UnreachableError, VllmClient, WhyEnded
from rnow.engines.vllm.log import last_line, last_words
from rnow.engines.vllm.wire import ROUTE
from rnow.errors import DeadlineError, EngineError
from rnow.runtime.child_process import ChildProcess, how_it_ended
from rnow.runtime.deadline import within
from rnow.runtime.own_variables import started_with

_POLL_S = 0.5
_POLL_TIMEOUT_S = 5.0
_LOG_LINE_BYTES = 20_000
_LOG_CAUSE_BYTES = 20_000_000  # a dying server repeats itself for megabytes after the cause
_GRACE_S = 5.0  # SIGTERM to SIGKILL; 10 s after a run nothing of it is alive

Progress = Callable[[float, str], None]  # (seconds waited, last line of the log)


class VllmServer:
    """One running server. `start` makes it; it ends by `stop`, or by itself.

    server = await VllmServer.start(settings, on_progress=show)
    engine = VllmEngine([server.url], request_timeout_s=600.0)
    await server.stop()
    """

    def __init__(
        self, settings: VllmServerSettings, process: ChildProcess, *, socket: Path, log_start: int
    ) -> None:
        self.settings = settings
        self.socket = socket
        self.url = f"unix:{socket}"
        self._process = process
        self._log_start = log_start  # bytes of the log that an earlier server wrote
        self._is_stopping = False
        self._why_given_up: str | None = None
        self._sentence: str | None = None
        self._watching = asyncio.create_task(self._watch(), name=f"{settings.role}: watch")

    @classmethod
    async def start(
        cls,
        settings: VllmServerSettings,
        *,
        socket: Path | None = None,
        on_progress: Progress | None = None,
    ) -> "VllmServer":
        """Start a server and return it when it has answered a first request.

        `socket` None: a new one. Raises EngineError where it ends before that, DeadlineError after
        `settings.start_timeout_s`; no process is left then.
        """
        socket = socket or new_socket()
        settings.log_file.parent.mkdir(parents=True, exist_ok=True)
        log_start = settings.log_file.stat().st_size if settings.log_file.exists() else 0
        line = command(settings, socket=socket)
        variables = environment(settings, started_with(), socket=socket)
        try:
            prepare_folder(socket)
            process = await ChildProcess.start(
                line, environment=variables, log_file=settings.log_file
            )
        except OSError as error:
            raise EngineError(f"the {settings.role}'s server cannot start: {error}") from error
        server = cls(settings, process, socket=socket, log_start=log_start)
        try:
            await server._become_ready(on_progress)
        except BaseException:
            await server.stop()
            raise
        return server

    def client(self, why_ended: WhyEnded, *, pauses_s: Sequence[float] = PAUSES_S) -> VllmClient:
        return VllmClient(self.url, why_ended=why_ended, pauses_s=pauses_s)

    @property
    def pid(self) -> int:
        return self._process.pid

    def why_ended(self) -> str | None:
        """Return a sentence with the log's last words once the server has ended; None before."""
        if self._sentence is not None:
            return self._sentence
        status = self._process.status
        if status is None and self._why_given_up is None:
            return None
        why = self._why_given_up or f"has ended ({how_it_ended(status or 0)})"
        sentence = (
            f"the vLLM server of the {self.settings.role} {why}"
            f"{self._quote(was_killed=status is None or status < 0)}"
        )
        if self._watching.done():  # nothing more is written; a log may have megabytes
            self._sentence = sentence
        return sentence

    async def answer_once(self, client: VllmClient) -> None:
        """Have one token sampled: the first request may compile, and is to count as starting."""
        body = {
            "model": served_name(self.settings, self.socket),
            "token_ids": [0],
            "sampling_params": {"max_tokens": 1, "temperature": 1.0, "logprobs": 0, "seed": 0},
        }
        try:
            await client.post(ROUTE, body)
        except UnreachableError as error:
            await asyncio.sleep(_POLL_S)  # for the end of the process to be seen
            raise EngineError(self.why_ended() or f"{error}{self._quote()}") from error

    async def give_up(self, why: str) -> None:
        """End a server that does not serve; `why_ended` says that it "<why>"."""
        if self._process.status is None:
            self._why_given_up = why
        await self._process.end(grace_s=0)

    async def wait_ended(self) -> str:
        """Wait until the server has ended, for whatever reason; return `why_ended`."""
        await asyncio.wait({self._watching})
        sentence = self.why_ended()
        assert sentence is not None
        return sentence

    async def stop(self) -> None:
        """End the server and its children, within seconds; stopping twice is fine."""
        self._is_stopping = True
        await self._process.end(grace_s=_GRACE_S)
        await asyncio.wait({self._watching})
        shutil.rmtree(self.socket.parent, ignore_errors=True)

    async def _watch(self) -> None:
        await self._process.wait()
        if not self._is_stopping:  # its workers would keep the devices' memory
            await self._process.end(grace_s=0)

    async def _become_ready(self, on_progress: Progress | None) -> None:
        settings = self.settings
        what = f"engine.start of the {settings.role}'s vLLM server"
        started = time.monotonic()
        client = self.client(self.why_ended, pauses_s=())
        try:
            async with within(settings.start_timeout_s, what), aclosing(client):
                while not await _is_healthy(client):
                    if on_progress is not None:
                        line = last_line(self._log(max_bytes=_LOG_LINE_BYTES))
                        on_progress(time.monotonic() - started, line)
                    await asyncio.sleep(_POLL_S)
                await self.answer_once(client)
        except HttpError as error:  # "see above", it says, and means its log
            raise EngineError(f"{error}{self._quote()}") from error
        except DeadlineError as error:
            raise DeadlineError(
                f"{error}, the limit of engine.start_timeout_s{self._quote()}"
            ) from error

    def _log(self, *, max_bytes: int = _LOG_CAUSE_BYTES) -> str:
        return _read_end(self.settings.log_file, self._log_start, max_bytes=max_bytes)

    def _quote(self, *, was_killed: bool = False) -> str:
        words = last_words(self._log(), was_killed=was_killed)
        return f"; {self.settings.log_file} ends with:\n{words}"


async def _is_healthy(client: VllmClient) -> bool:
    try:
        async with asyncio.timeout(_POLL_TIMEOUT_S):
            await client.get("/health")
    except (HttpError, UnreachableError, TimeoutError):  # not listening yet
        return False
    return True


def _read_end(file: Path, start: int, *, max_bytes: int) -> str:
    with open(file, "rb") as log:
        size = log.seek(0, 2)
        log.seek(max(start, size - max_bytes))
        return log.read().decode(errors="replace")
