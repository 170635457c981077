"""The controller's side of one machine of a cluster: its keeper, and the servers that it keeps."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from rnow.engines.vllm.command import VllmServerSettings
from rnow.engines.vllm.http import VllmClient, WhyEnded
from rnow.engines.vllm.server import Progress
from rnow.errors import DeadlineError, EngineError, RnowError
from rnow.plan.nodes import Machine
from rnow.runtime.deadline import within
from rnow.runtime.side_by_side import end_tasks

_LOOK_S = 2.0  # between two looks at a server's log
_ANSWER_LIMIT_S = 60.0  # of a keeper, for what needs no server
_STOP_LIMIT_S = 30.0
_SLACK_S = 60.0  # beyond a server's own deadline

Value = TypeVar("Value")


class SharedFiles:
    """Folders as objects of Ray's store: put there once for all nodes, freed when all have them."""

    def __init__(self) -> None:
        self._refs: dict[Path, list[Any]] = {}
        self._users: dict[Path, int] = {}

    @asynccontextmanager
    async def of(self, path: Path) -> AsyncIterator[tuple[list[str], list[Any]]]:
        """Lend the names of a folder's files, or of one file, and references to what is in them."""
        self._users[path] = self._users.get(path, 0) + 1
        try:
            inside = path.iterdir() if path.is_dir() else [path]
            files = sorted(file for file in inside if file.is_file())
            if path not in self._refs:
                self._refs[path] = [_put(file) for file in files]
            yield [file.name for file in files], self._refs[path]
        finally:
            self._users[path] -= 1
            if not self._users[path]:
                del self._users[path]
                self._refs.pop(path, None)


def _put(file: Path) -> Any:
    size = file.stat().st_size
    content = np.memmap(file, np.uint8, "r") if size else np.zeros(0, np.uint8)
    return ray.put(content)


async def _awaited(ref: Awaitable[Value]) -> Value:
    """Return what a keeper answers; where nobody waits for it any more, it need not go on."""
    try:
        return await ref
    except asyncio.CancelledError:
        with suppress(RayError, ValueError):
            ray.cancel(ref)
        raise


@dataclass(slots=True, eq=False)
class Node:
    """One machine. `keeper` is the handle of its Keeper, `place` the strategy that put it there."""

    machine: Machine
    keeper: Any
    files: SharedFiles
    place: Any
    why_gone: str | None = None
    _folders: dict[Path, str] = field(default_factory=dict)  # ours: its name there

    @property
    def name(self) -> str:
        return self.machine.name

    async def ask(self, ref: Awaitable[Value], what: str, *, limit_s: float) -> Value:
        """Return what the keeper answers; raise its error, or EngineError where it is gone."""
        async with within(limit_s, f"{what} on {self.name}"):
            return await self.heard(ref, what)

    async def heard(self, ref: Awaitable[Value], what: str) -> Value:
        """As `ask`, however long it takes."""
        try:
            return await _awaited(ref)
        except RayTaskError as error:
            if isinstance(error.cause, RnowError):
                raise error.cause from None
            raise EngineError(f"{what} on {self.name} failed: {error.cause}") from error
        except RayActorError as error:
            raise EngineError(self.gone(error)) from error

    async def end(self, ref: Awaitable[object], what: str, *, limit_s: float) -> None:
        """Have the keeper end something; where it is gone, the lifeline there has done it."""
        with suppress(EngineError, DeadlineError):
            await self.ask(ref, what, limit_s=limit_s)

    def gone(self, error: Exception) -> str:
        if self.why_gone is None:
            first = str(error).strip().splitlines()[0]
            self.why_gone = f"the machine {self.name} does not answer any more ({first})"
        return self.why_gone

    async def deliver(self, folder: Path) -> str:
        """Bring a folder there, or one file in a folder; return that folder's path there."""
        name = f"{folder.parent.name}-{folder.name}-{time.time_ns()}"
        self._folders[folder] = name  # a half of it is to be forgotten, too
        async with self.files.of(folder) as (files, refs):
            receiving = self.keeper.receive.remote(name, files, *refs)
            path: str = await self.ask(receiving, f"cluster.deliver of {folder}", limit_s=3600)
        return path

    async def forget(self, folder: Path) -> None:
        name = self._folders.pop(folder, None)
        if name is not None and self.why_gone is None:
            forgetting = self.keeper.forget.remote(name)
            await self.ask(forgetting, f"cluster.forget of {folder}", limit_s=_ANSWER_LIMIT_S)

    async def clear(self, folder: Path) -> None:
        """Take away a folder of the keeper's own."""
        forgetting = self.keeper.forget.remote(str(folder))
        await self.ask(forgetting, f"cluster.clear of {folder}", limit_s=_ANSWER_LIMIT_S)


class KeptClient(VllmClient):
    """Requests to one server of another machine, through the keeper there."""

    def __init__(self, node: Node, server: str, url: str, **more: Any) -> None:
        super().__init__(url, **more)
        self._node = node
        self._server = server

    async def exchange(self, method: str, route: str, body: bytes | None) -> tuple[int, bytes]:
        ref = self._node.keeper.exchange.remote(self._server, method, route, body)
        try:
            answer = await _awaited(ref)
        except RayActorError as error:
            raise ConnectionError(self._node.gone(error)) from error
        except RayTaskError as error:
            raise ConnectionError(f"the keeper failed: {error.cause}") from error
        if isinstance(answer, str):
            raise ConnectionError(answer)
        return answer  # type: ignore[no-any-return]

    async def deliver(self, folder: Path) -> str:
        return await self._node.deliver(folder)

    async def forget(self, folder: Path) -> None:
        await self._node.forget(folder)


class KeptServer:
    """A server on another machine, as a VllmServer is one on this. `start` makes it."""

    def __init__(
        self, node: Node, name: str, settings: VllmServerSettings, their_log: Path
    ) -> None:
        self.node, self.settings, self._their_log = node, settings, str(their_log)
        self.url = f"ray://{name}"
        self._name = name
        self._sentence: str | None = None
        self._log_bytes = 0
        self._watching = asyncio.create_task(self._watch(), name=f"{settings.role}: watch")
        self._copying = asyncio.create_task(self._copy_log(), name=f"{settings.role}: log")

    @classmethod
    async def start(
        cls,
        node: Node,
        settings: VllmServerSettings,
        *,
        on_progress: Progress | None = None,
    ) -> "KeptServer":
        name = settings.log_file.stem  # of one server in a run, and of the one in its place
        what = f"engine.start of the {settings.role}'s vLLM server"
        since = time.monotonic()
        showing = asyncio.create_task(_show(node, name, since, on_progress))
        there = settings
        try:
            if settings.is_made_here:
                there = replace(settings, model=Path(await node.deliver(settings.model)))
            their_log: Path = await node.ask(
                node.keeper.start.remote(name, there),
                what,
                limit_s=settings.start_timeout_s + _SLACK_S,
            )
        finally:
            await end_tasks(showing)
            if settings.is_made_here:  # it has been read
                with suppress(RnowError):
                    await node.forget(settings.model)
        return cls(node, name, settings, their_log)

    def client(self, why_ended: WhyEnded) -> VllmClient:
        return KeptClient(self.node, self._name, self.url, why_ended=why_ended)

    def why_ended(self) -> str | None:
        return self._sentence or self.node.why_gone

    async def answer_once(self, client: VllmClient) -> None:
        answering = self.node.keeper.answer_once.remote(self._name)
        await self.node.ask(answering, "cluster.answer_once", limit_s=_ANSWER_LIMIT_S)
        client.answered_at = time.monotonic()

    async def give_up(self, why: str) -> None:
        giving_up = self.node.keeper.give_up.remote(self._name, why)
        await self.node.ask(giving_up, "cluster.give_up", limit_s=_STOP_LIMIT_S)

    async def wait_ended(self) -> str:
        await asyncio.wait({self._watching})
        return self._watching.result()

    async def stop(self) -> None:
        stopping = self.node.keeper.stop.remote(self._name)
        await self.node.end(stopping, f"cluster.stop of {self._name}", limit_s=_STOP_LIMIT_S)
        await end_tasks(self._watching, self._copying)

    async def _watch(self) -> str:
        try:
            sentence: str = await self.node.keeper.wait_ended.remote(self._name)
        except RayActorError as error:
            self._sentence = self.node.gone(error)
        else:
            ours = f"{self.settings.log_file} (of {self.node.name})"
            self._sentence = sentence.replace(self._their_log, ours)
        return self._sentence

    async def _copy_log(self) -> None:
        """Bring the server's log into the run's folder as it grows."""
        while self.node.why_gone is None:
            reading = self.node.keeper.read_log.remote(self._name, self._log_bytes)
            with suppress(RnowError):
                new = await self.node.ask(reading, "cluster.read_log", limit_s=_ANSWER_LIMIT_S)
                self._log_bytes += len(new)
                if new:
                    with self.settings.log_file.open("ab") as log:
                        log.write(new)
            await asyncio.sleep(_LOOK_S)


async def _show(node: Node, name: str, since: float, on_progress: Progress | None) -> None:
    while on_progress is not None:
        await asyncio.sleep(_LOOK_S)
        with suppress(RnowError):
            asking = node.keeper.last_line.remote(name)
            line = await node.ask(asking, "cluster.last_line", limit_s=_ANSWER_LIMIT_S)
            on_progress(time.monotonic() - since, line)
