"""What a worker that has gone leaves: no word on the terminal from asyncio."""

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from processes import is_alive, until

from rnow.runtime.channel import Channel
from rnow.runtime.child_process import ChildProcess
from rnow.tools import process
from rnow.tools.process import WorkerGone, WorkerProcess
from rnow.tools.settings import WorkerSettings


class Going:
    """A channel whose worker ends while a call is being sent."""

    process: Any = None
    worker: WorkerProcess

    async def send(self, message: Mapping[str, Any]) -> None:
        for answer in self.worker._pending.values():
            answer.set_exception(WorkerGone("worker"))
        raise ConnectionError


async def test_a_worker_that_ends_while_it_is_sent_a_call_is_told_of_once(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    going: Any = Going()
    settings = WorkerSettings(
        project_dir=tmp_path, tool_timeout_s=1, workers=1, concurrency=1, log_file=tmp_path / "log"
    )
    going.worker = WorkerProcess("worker", going, settings=settings, log_start=0)
    with pytest.raises(WorkerGone):
        await going.worker.call({"name": "tool"}, limit_s=1)
    gc.collect()
    assert told == []


async def test_nothing_is_said_of_what_is_posted_to_a_worker_that_has_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    process: Any = None
    with caplog.at_level(logging.WARNING):
        channel = Channel(process, await asyncio.open_connection(sock=ours))
        for _ in range(20):
            channel.post({"type": "release", "rollout": "0.0.0"})
            await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            await channel.send({"type": "stop"})
        channel._writer.transport.abort()
    assert caplog.messages == []


async def test_a_start_that_is_cut_while_it_looks_for_the_place_of_a_hang_leaves_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tools.py").write_text("import time\ntime.sleep(600)\n")
    found: list[int] = []
    looking = asyncio.Event()

    async def look(child: ChildProcess, *_: object, **__: object) -> None:
        found.append(child.pid)
        looking.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(process, "place_of_hang", look)
    settings = WorkerSettings(
        project_dir=tmp_path,
        tool_timeout_s=1,
        workers=1,
        concurrency=1,
        log_file=tmp_path / "log",
        start_timeout_s=0.5,
    )
    environment = dict(os.environ)
    starting = asyncio.create_task(
        WorkerProcess.start(settings, environment=environment, name="worker")
    )
    await looking.wait()
    assert is_alive(found[0])
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(lambda: not is_alive(found[0]))
