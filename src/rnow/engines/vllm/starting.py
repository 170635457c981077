"""The first start of one role's servers: one before the others, and once more where one fails.

What the first has read and compiled the others find in memory and in caches, instead of all of them
reading from one disk. Of many servers one may fail by chance, on a port that two of them chose or
memory that was not yet given back; a run does not end for it.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rnow.engines.vllm.command import VllmServerSettings
from rnow.engines.vllm.http import VllmClient, WhyEnded
from rnow.engines.vllm.server import Progress, VllmServer
from rnow.errors import EngineError
from rnow.runtime.side_by_side import each_to_its_end, end_tasks


class Server(Protocol):
    """A server that runs, here (server.py) or on another machine (rnow.cluster)."""

    settings: VllmServerSettings
    url: str  # names it in messages, and finds it; the same when it was started again

    def client(self, why_ended: WhyEnded) -> VllmClient: ...
    def why_ended(self) -> str | None: ...
    async def answer_once(self, client: VllmClient) -> None: ...
    async def give_up(self, why: str) -> None: ...
    async def wait_ended(self) -> str: ...
    async def stop(self) -> None: ...


class Starter(Protocol):
    """Starts a server; `again`: the one that ended, whose place it takes."""

    async def __call__(
        self,
        settings: VllmServerSettings,
        *,
        again: Any = None,
        on_progress: Progress | None = None,
    ) -> Server: ...


async def start_here(
    settings: VllmServerSettings,
    *,
    again: VllmServer | None = None,
    on_progress: Progress | None = None,
) -> Server:
    """Start a server on this machine."""
    socket = None if again is None else again.socket
    return await VllmServer.start(settings, socket=socket, on_progress=on_progress)


async def start_all(
    all_settings: Sequence[VllmServerSettings],
    *,
    start: Starter,
    say: Callable[[str], None],
    on_progress: Progress | None,
) -> list[Server]:
    """Start the first server, then the others side by side; where one cannot start, none is left.

    A deadline is not tried again: it was the user's own limit.
    """

    async def start_one(settings: VllmServerSettings) -> Server:
        try:
            return await start(settings, on_progress=on_progress)
        except EngineError as error:
            first = str(error)
        say(f"{first}\nIt is started once more")
        try:
            return await start(settings, on_progress=on_progress)
        except EngineError as error:
            how = "in the same way" if str(error) == first else f"so: {first}"
            raise EngineError(
                f"{error}\n(It was the second start; the first failed {how})"
            ) from error

    servers = [await start_one(settings) for settings in all_settings[:1]]
    tasks = [asyncio.ensure_future(start_one(settings)) for settings in all_settings[1:]]
    try:
        return servers + await asyncio.gather(*tasks)
    except BaseException:
        try:
            await end_tasks(*tasks)
        finally:
            servers += [t.result() for t in tasks if not t.cancelled() and t.exception() is None]
            await each_to_its_end(*(server.stop() for server in servers))
        raise
