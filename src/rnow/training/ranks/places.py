"""Where ranks are: who starts them, and how what they read and write comes there and back.

`RanksHere` starts them on this machine, where they read and write the run's own files; those of
other machines are rnow.cluster.ranks'.
"""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from rnow.runtime.channel import Channel
from rnow.training.ranks.messages import Message

PROGRAM = "rnow.training.ranks.program"


class Rank(Protocol):
    """One process of a trainer, wherever it is."""

    @property
    def where(self) -> str:
        """For sentences: "" here, else " on node-b"."""
        ...

    @property
    def status(self) -> int | None:
        """Exit code, minus the signal's number, or None while it runs, or where nobody knows."""
        ...

    @property
    def why_gone(self) -> str | None:
        """A sentence where its machine is gone."""
        ...

    async def send(self, message: Message) -> None:
        """Raises ConnectionError where nobody is at the other end."""
        ...

    async def receive(self) -> dict[str, Any] | None: ...
    async def wait(self) -> None: ...
    def show_stacks(self) -> None: ...
    async def bring_log(self) -> None:
        """Have all that it has printed in its log."""
        ...

    async def close(self) -> None:
        """Kill it, now."""
        ...


class RankPlace(Protocol):
    """Starts the ranks of one trainer, all of them again where one has ended."""

    async def open(self, rank: int, environment: Mapping[str, str]) -> Rank:
        """Start a rank, in the order of their numbers."""
        ...

    async def rendezvous(self) -> str:
        """Return where they are to meet, once all are started."""
        ...

    def carried(self, message: Message) -> AbstractAsyncContextManager[Sequence[Message]]:
        """Give what each rank is to be told in the place of `message`; after the block what they
        made of it is where the message says."""
        ...


class RankHere:
    """A rank that is a child of this process."""

    where, why_gone = "", None

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.send, self.receive, self.close = channel.send, channel.receive, channel.close

    @property
    def pid(self) -> int:
        return self._channel.process.pid

    @property
    def status(self) -> int | None:
        return self._channel.process.status

    async def wait(self) -> None:
        await self._channel.process.wait()

    def show_stacks(self) -> None:
        self._channel.process.signal(signal.SIGUSR1)

    async def bring_log(self) -> None:
        """It is written where it is read."""


class RanksHere:
    """Ranks on this machine. They meet by a file, and speak over loopback."""

    def __init__(self, *, num: int, run: Path, logs: Path) -> None:
        self._num, self._run, self._logs = num, run, logs

    async def open(self, rank: int, environment: Mapping[str, str]) -> RankHere:
        channel = await Channel.open(
            PROGRAM,
            environment={**_environment(self._num), **environment},
            log_file=self._logs / f"rank-{rank}.log",
            folder=self._run,
        )
        return RankHere(channel)

    async def rendezvous(self) -> str:
        return f"file://{tempfile.mkdtemp(prefix='rnow-ranks-')}/meet"

    @asynccontextmanager
    async def carried(self, message: Message) -> AsyncIterator[Sequence[Message]]:
        try:
            yield [message] * self._num
        finally:
            if message["type"] == "load":  # they have met
                met = Path(message["rendezvous"].removeprefix("file://")).parent
                await asyncio.to_thread(shutil.rmtree, met, ignore_errors=True)


def _environment(num_ranks: int) -> dict[str, str]:
    """Return the variables of a rank: its share of the cores, sockets on this machine alone."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    cores = max(1, (os.cpu_count() or 1) // num_ranks)
    return {
        "OMP_NUM_THREADS": str(cores),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        **os.environ,
    }
