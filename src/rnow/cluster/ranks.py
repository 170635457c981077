"""The ranks of a trainer on the machines of a cluster, as the controller sees them.

    journal, checkpoint ──▶ object store ──▶ keeper's folder ──▶ rank
    run's folder ◀── checkpoint, adapter, what was written of a batch ◀── keeper's folder

A rank reads and writes on its own machine alone; what it needs is brought there before it is told
to, and what it made is brought back before its answer counts. So no file system has to be shared.
"""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from rnow.cluster.connect import Cluster
from rnow.cluster.node import Node
from rnow.errors import DeadlineError, EngineError, RnowError
from rnow.runtime.atomic_files import replace_folder, telling_if_full
from rnow.runtime.deadline import within
from rnow.runtime.side_by_side import each_to_its_end, side_by_side

_ANSWER_LIMIT_S = 60.0  # of a keeper
_OPEN_LIMIT_S = 180.0  # of one that may have to start first
_LOOK_S = 2.0  # between two looks at a log
_PIECE_BYTES, _PIECE_LIMIT_S = 64 << 20, 600.0  # of a file that comes back, at once
_LOOPBACK = "127.0.0.1"  # of ranks that are all on one machine
_WRITES = ("save", "checkpoint")

Message = Mapping[str, Any]


class RankThere:
    """One rank on another machine. `open` makes it."""

    def __init__(self, node: Node, name: str, made: Path, *, address: str, log: Path) -> None:
        self.node, self.made, self.address = node, made, address
        self.status: int | None = None
        self.paths: dict[str, str] = {}  # there: here, of what it was told or tells of
        self._name, self._log, self._log_bytes = name, log, 0
        self._waiting = asyncio.create_task(self._wait(), name=f"{name}: watch")
        self._copying = asyncio.create_task(self._copy_log(), name=f"{name}: log")

    @classmethod
    async def open(
        cls,
        node: Node,
        rank: int,
        *,
        program: str,
        address: str,
        student: Path,
        environment: Mapping[str, str],
        logs: Path,
    ) -> "RankThere":
        """`address`: of the machine, where the others reach it."""
        name = f"rank-{rank}"
        opening = node.keeper.open_rank.remote(name, program, student, environment, address)
        made = await node.ask(opening, "cluster.open_rank", limit_s=_OPEN_LIMIT_S)
        return cls(node, name, made, address=address, log=logs / f"{name}.log")

    @property
    def where(self) -> str:
        return f" on {self.node.name}"

    @property
    def why_gone(self) -> str | None:
        return self.node.why_gone

    async def send(self, message: Message) -> None:
        telling = self.node.keeper.tell_rank.remote(self._name, message)
        try:
            await self.node.ask(telling, "cluster.tell_rank", limit_s=_ANSWER_LIMIT_S)
        except EngineError as error:
            raise ConnectionError(str(error)) from error

    async def receive(self) -> dict[str, Any] | None:
        try:
            answer = await self.node.heard(
                self.node.keeper.hear_rank.remote(self._name), "cluster.hear_rank"
            )
        except EngineError:
            return None
        if answer is None or answer["type"] == "progress":
            return answer  # type: ignore[no-any-return]
        text = json.dumps(answer)
        for theirs, ours in self.paths.items():
            text = text.replace(json.dumps(theirs)[1:-1], json.dumps(ours)[1:-1])
        return json.loads(text)  # type: ignore[no-any-return]

    async def wait(self) -> None:
        await asyncio.wait({self._waiting})

    def show_stacks(self) -> None:
        self.node.keeper.signal_rank.remote(self._name, int(signal.SIGUSR1))

    async def bring_log(self) -> None:
        """Bring what is new in its log."""
        reading = self.node.keeper.read_log.remote(self._name, self._log_bytes)
        with suppress(RnowError):
            new = await self.node.ask(reading, "cluster.read_log", limit_s=_ANSWER_LIMIT_S)
            self._log_bytes += len(new)
            with self._log.open("ab") as log:
                log.write(new)

    async def close(self) -> None:
        self._copying.cancel()
        await asyncio.wait({self._copying})
        await self.bring_log()
        ending = self.node.keeper.end_rank.remote(self._name)
        await self.node.end(ending, "cluster.end_rank", limit_s=_ANSWER_LIMIT_S)
        self._waiting.cancel()
        await asyncio.wait({self._waiting})

    async def _wait(self) -> None:
        with suppress(EngineError):
            waiting = self.node.keeper.wait_rank.remote(self._name)
            self.status = await self.node.heard(waiting, "cluster.wait_rank")

    async def _copy_log(self) -> None:
        while self.why_gone is None:
            await self.bring_log()
            await asyncio.sleep(_LOOK_S)


class RanksOnNodes:
    """Starts ranks on machines, and carries files for them.

    `nodes`: Ray's id of each rank's; `program`: the module that a rank is.
    """

    def __init__(
        self,
        cluster: Cluster,
        nodes: Sequence[str],
        *,
        program: str,
        student: Path,
        run: Path,
        logs: Path,
    ) -> None:
        self._cluster, self._nodes, self._program = cluster, nodes, program
        self._student, self._run, self._logs = student, run, logs
        # One number for all, wherever a rank may have to go: bits depend on it.
        shares = (cluster.nodes[id].machine.cores // nodes.count(id) for id in nodes)
        self._threads = str(max(1, min(shares)))
        self._ranks: list[RankThere] = []

    async def open(self, rank: int, environment: Mapping[str, str]) -> RankThere:
        """Start a rank; where its machine is gone, on another. Ranks are opened in their order."""
        if rank == 0:
            self._ranks = []
        nodes = [await self._cluster.node_for(id) for id in self._nodes]
        node, is_alone = nodes[rank], len({*nodes}) == 1
        variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", self._threads)}
        opened = await RankThere.open(
            node,
            rank,
            program=self._program,
            address=_LOOPBACK if is_alone else node.machine.address,
            student=self._student,
            environment={**variables, **environment},
            logs=self._logs,
        )
        self._ranks.append(opened)
        return opened

    async def rendezvous(self) -> str:
        """Have the first rank listen where the others reach it; return where."""
        first = self._ranks[0]
        async with within(_ANSWER_LIMIT_S, "cluster.rendezvous of the first rank"):
            await first.send({"type": "listen", "address": first.address})
            answer = await first.receive()
        if answer is None:
            raise EngineError(f"the first rank of the trainer has ended{first.where}")
        return str(answer["rendezvous"])

    @asynccontextmanager
    async def carried(self, message: Message) -> AsyncIterator[list[Message]]:
        """Give what each rank is to be told; afterwards what they made is here."""
        kind = message["type"]
        if kind == "load":
            yield [{**message, "run": self._made(rank, "run", self._run)} for rank in self._ranks]
        elif kind == "restore":
            async with self._lent(Path(message["folder"])) as there:
                yield [{**message, "folder": there[rank.node]} for rank in self._ranks]
        elif kind == "update":
            journal = Path(message["journal"])
            async with self._lent(journal) as there:
                try:
                    yield [
                        {**message, "journal": f"{there[rank.node]}/{journal.name}"}
                        for rank in self._ranks
                    ]
                except RnowError:  # a batch may be refused, and be kept to look into
                    await self._bring_files()
                    raise
                await self._bring_files()
        elif kind in _WRITES:
            folder, name = Path(message["folder"]), f"written-{time.time_ns()}"
            yield [
                {**message, "folder": self._made(rank, f"{name}/{folder.name}", folder)}
                for rank in self._ranks
            ]
            await self._bring_folder(name, folder)
        else:
            yield [message] * len(self._ranks)

    def _made(self, rank: RankThere, name: str, ours: Path) -> str:
        there = str(rank.made / name)
        rank.paths[there] = str(ours)
        return there

    @asynccontextmanager
    async def _lent(self, path: Path) -> AsyncIterator[dict[Node, str]]:
        """Have a folder, or a file in one, on each machine as long as the block lasts."""
        nodes = [*dict.fromkeys(rank.node for rank in self._ranks)]
        try:
            folders = await side_by_side(*(node.deliver(path) for node in nodes))
            there = dict(zip(nodes, folders, strict=True))
            ours = str(path.parent if path.is_file() else path)
            for rank in self._ranks:
                rank.paths[there[rank.node]] = ours
            yield there
        finally:
            with suppress(EngineError, DeadlineError):
                await each_to_its_end(*(node.forget(path) for node in nodes))

    async def _bring_files(self) -> None:
        """Bring into the run's folder what the first rank wrote of a batch."""
        first = self._ranks[0]
        if first.why_gone is not None:
            return
        there, temporary = first.made / "run", self._run / ".brought"
        for name, file in await _fetched(first.node, there, temporary):
            place = self._run / name
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
        shutil.rmtree(temporary, ignore_errors=True)
        await first.node.clear(there)

    async def _bring_folder(self, name: str, folder: Path) -> None:
        """Put what the ranks wrote, each machine's its own, in the place of `folder`."""
        temporary = folder.with_name(f".{folder.name}.brought")
        files: dict[str, Path] = {}
        for node, made in {rank.node: rank.made for rank in self._ranks}.items():
            found = await _fetched(node, made / name, temporary / node.machine.id)
            files |= {Path(file).name: place for file, place in found}
            await node.clear(made / name)
        await asyncio.to_thread(_put_in_place, folder, files)
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(folder: Path, files: Mapping[str, Path]) -> None:
    def fill(temporary: Path) -> None:
        for name, file in files.items():
            file.replace(temporary / name)
        _name_all_parts(temporary)

    replace_folder(folder, fill)


def _name_all_parts(checkpoint: Path) -> None:
    """Have state.json name the sizes of all files: a rank sees those of its machine alone."""
    file = checkpoint / "state.json"
    if file.exists():
        state = json.loads(file.read_text(encoding="utf-8"))
        others = (path for path in checkpoint.iterdir() if path != file)
        state["sizes"] = {path.name: path.stat().st_size for path in others}
        file.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


async def _fetched(node: Node, folder: Path, into: Path) -> list[tuple[str, Path]]:
    """Bring all files of a folder there into one here; return the name of each and where it is."""
    shutil.rmtree(into, ignore_errors=True)
    listing = node.keeper.files_of.remote(folder)
    files = await node.ask(listing, "cluster.files_of", limit_s=_ANSWER_LIMIT_S)
    found = []
    for number, (name, size) in enumerate(files):
        place = into / str(number)
        into.mkdir(parents=True, exist_ok=True)
        with telling_if_full(place, needs_bytes=size), place.open("wb") as file:
            for start in range(0, size, _PIECE_BYTES):
                reading = node.keeper.read_file.remote(folder / name, start, _PIECE_BYTES)
                piece = await node.ask(reading, "cluster.read_file", limit_s=_PIECE_LIMIT_S)
                await asyncio.to_thread(file.write, piece.data)  # tofile names no errno
        found.append((name, place))
    return found
