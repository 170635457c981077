"""What runs on each machine of a cluster: it starts servers and ranks there and speaks for them.

    controller ── Ray ──▶ keeper ─┬─ loopback or a unix socket ──▶ a vLLM server, its child
                                  └─ a socket pair ──▶ a rank of the trainer (kept_ranks.py)

No server listens beyond its own machine: whoever reaches vLLM's development routes can replace its
weights. A keeper is an actor of one run; when the run's process ends, Ray ends the keeper, and the
lifeline of child_process.py ends what the keeper has started.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rnow.cluster.kept_ranks import KeptRanks
from rnow.engines.vllm.command import VllmServerSettings
from rnow.engines.vllm.http import VllmClient
from rnow.engines.vllm.server import VllmServer
from rnow.errors import EngineError
from rnow.runtime.atomic_files import filling
from rnow.runtime.side_by_side import each_to_its_end, until_ended

_PLACES = (Path("/dev/shm"), Path(tempfile.gettempdir()))  # memory first: read once, then dropped

Bytes = npt.NDArray[np.uint8]


class Keeper:
    """One node's servers and ranks, by the names that the controller gives them. Its methods are
    called through Ray: await node.keeper.start.remote("student-0", settings)."""

    def __init__(self) -> None:
        place = next(place for place in _PLACES if place.is_dir())
        self._folder = Path(tempfile.mkdtemp(prefix="rnow-", dir=place))  # for its owner alone
        self._lifeline_fd = _remove_after_me(self._folder)
        self._servers: dict[str, VllmServer] = {}
        self._clients: dict[str, VllmClient] = {}
        self._lines: dict[str, str] = {}  # the last of each log, while a server starts
        self._ranks = KeptRanks(self._folder)

    async def whereabouts(self) -> tuple[int, Path]:
        """Return the number of this process, and the folder that it keeps files in."""
        return os.getpid(), self._folder

    async def start(self, name: str, settings: VllmServerSettings) -> Path:
        """Start a server; return its log, here, once it has answered. Raises as VllmServer.start
        does."""
        _check_there(settings.model)
        await self.stop(name)
        log_file = self._folder / f"{name}.log"
        server = await VllmServer.start(
            replace(settings, log_file=log_file),
            on_progress=lambda _, line: self._lines.__setitem__(name, line),
        )
        self._servers[name] = server
        self._clients[name] = server.client(server.why_ended, pauses_s=())
        return log_file

    async def exchange(
        self, name: str, method: str, route: str, body: bytes | None
    ) -> tuple[int, bytes] | str:
        """Return status and content of a server's answer, or why there was none."""
        try:
            return await self._clients[name].exchange(method, route, body)
        except OSError as error:
            return str(error)

    async def answer_once(self, name: str) -> None:
        await self._servers[name].answer_once(self._clients[name])

    async def wait_ended(self, name: str) -> str:
        return await self._servers[name].wait_ended()

    async def give_up(self, name: str, why: str) -> None:
        await self._servers[name].give_up(why)

    async def stop(self, name: str) -> None:
        client, server = self._clients.pop(name, None), self._servers.pop(name, None)
        if client is not None:
            await client.aclose()
        if server is not None:
            await server.stop()

    async def open_rank(
        self,
        name: str,
        program: str,
        student: Path,
        environment: Mapping[str, str],
        address: str,
    ) -> Path:
        """Start a rank of the trainer, that speaks to others at `address`; return where what it
        makes is to lie."""
        _check_there(student)
        return await self._ranks.open(name, program, environment, address=address)

    async def tell_rank(self, name: str, message: Mapping[str, Any]) -> None:
        await self._ranks.channels[name].send(message)

    async def hear_rank(self, name: str) -> Mapping[str, Any] | None:
        """Return what a rank says next; None where it has ended."""
        return await self._ranks.channels[name].receive()

    async def wait_rank(self, name: str) -> int:
        return await self._ranks.channels[name].process.wait()

    async def signal_rank(self, name: str, number: int) -> None:
        self._ranks.channels[name].process.signal(signal.Signals(number))

    async def end_rank(self, name: str) -> None:
        await self._ranks.end(name)

    async def files_of(self, folder: Path) -> list[tuple[str, int]]:
        """Return the files in a folder of this keeper's, however deep, each with its size."""
        found = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return [(str(path.relative_to(folder)), path.stat().st_size) for path in found]

    async def read_file(self, file: Path, start: int, num_bytes: int) -> Bytes:
        count = min(num_bytes, file.stat().st_size - start)
        return await asyncio.to_thread(np.fromfile, file, np.uint8, count, offset=start)

    async def read_log(self, name: str, start: int) -> bytes:
        """Return what a server's log has from byte `start` on, at most a megabyte."""
        file = self._folder / f"{name}.log"
        if not file.exists():
            return b""
        with file.open("rb") as log:
            log.seek(start)
            return log.read(1 << 20)

    async def last_line(self, name: str) -> str:
        return self._lines.get(name, "")

    async def receive(self, name: str, files: Sequence[str], *contents: Bytes) -> str:
        """Write a folder; return its path here once it is complete."""
        folder, begun = self._folder / name, self._folder / f".{name}"
        if not folder.exists():
            writing = asyncio.create_task(asyncio.to_thread(_write, begun, files, contents))
            # A thread cannot be cancelled: who is, waits for it, so that nothing is written after.
            await until_ended(writing)
            writing.result()
            begun.rename(folder)
        return str(folder)

    async def forget(self, name: str) -> None:
        for folder in (self._folder / name, self._folder / f".{name}"):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def close(self) -> None:
        """End all servers and ranks, and take away what was written."""
        await each_to_its_end(
            *(self.stop(name) for name in [*self._servers]),
            *(self._ranks.end(name) for name in [*self._ranks.channels]),
        )
        os.close(self._lifeline_fd)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


def _remove_after_me(folder: Path) -> int:
    """Have `folder` removed when this process ends, by SIGKILL too: it may be memory.

    What removes it waits for the end of a pipe that nobody writes to. It is no child of this
    process, since Ray kills the children of a process of its own that ends. Returns our end.
    """
    theirs, ours = os.pipe()
    script = 'exec 3<&0; { read -r _ <&3; rm -rf "$1"; } </dev/null >/dev/null 2>&1 &'
    try:
        command = ["/bin/sh", "-c", script, "cleaner", str(folder)]
        subprocess.run(command, stdin=theirs, check=True, start_new_session=True)
    finally:
        os.close(theirs)
    return ours


def _check_there(model: Path) -> None:
    if not model.is_dir():
        raise EngineError(
            f"there is no folder {model} on {socket.gethostname()}: put the model there, under the "
            "same path on every machine, or on a file system that all share"
        )


def _write(folder: Path, files: Sequence[str], contents: Sequence[Bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with filling(folder, needs_bytes=sum(one.nbytes for one in contents)):
        folder.mkdir()
        for file, content in zip(files, contents, strict=True):
            (folder / file).write_bytes(content.data)  # numpy's own tofile names no errno
