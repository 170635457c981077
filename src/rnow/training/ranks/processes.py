"""The processes of a trainer's ranks: started together, asked together, ended together.

Where one ends or stands still, the others wait for it for ever, so all are ended then, and whoever
asked is told which one it was and what it said last.
"""

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rnow.config.settings import Config
from rnow.engines.vllm.log import last_words
from rnow.errors import EngineError
from rnow.runs.folder import RunDirectory
from rnow.runtime.child_process import how_it_ended
from rnow.runtime.deadline import report_breach, waiting
from rnow.runtime.side_by_side import each_to_its_end, end_tasks
from rnow.training.ranks.messages import PEER_GONE, WAITING, Message, error_of
from rnow.training.ranks.places import Rank, RankPlace

_LOG_BYTES = 200_000
_END_S = 15.0  # of another machine it may take a while to be heard
_FOLLOW_S = 3.0  # after the first has ended: the others find out, and end too
_STACKS_S = 0.5


class RankEnded(Exception):
    """A rank is gone or stands still; the message is a sentence that names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSettings:
    """What the ranks of one run are started with."""

    config: Config
    student: Path  # the model's folder
    device: Literal["cuda", "cpu"]
    run: RunDirectory
    num_steps: int
    is_sharded: bool
    environments: Sequence[Mapping[str, str]]  # of each rank, beside those of where it is
    place: RankPlace

    @property
    def num(self) -> int:
        return len(self.environments)


class RankProcesses:
    """Ranks that are loaded. `start` makes them; after any error they are not to be asked again."""

    def __init__(self, settings: RankSettings) -> None:
        self.arithmetic: dict[str, str] = {}
        self._settings = settings
        self._limit_s = settings.config.trainer.rank_timeout_s
        self.ranks: list[Rank] = []
        self._log_starts: list[int] = []
        self._phases: list[str] = []
        self._progressed_at = time.monotonic()

    @classmethod
    async def start(cls, settings: RankSettings) -> "RankProcesses":
        """Start all and load the student in each. Raises RankEnded, or what a rank tells of."""
        self = cls(settings)
        try:
            with telling_of_machines():
                for rank in range(settings.num):
                    await self._open(rank)
                rendezvous = await settings.place.rendezvous()
            message = {
                "type": "load",
                "num_ranks": settings.num,
                "rendezvous": rendezvous,
                "is_sharded": settings.is_sharded,
                "device": settings.device,
                "config": settings.config.model_dump(mode="json"),
                "student": str(settings.student.absolute()),
                "run": str(settings.run.path.absolute()),
                "num_steps": settings.num_steps,
            }
            first = (await self.ask(message, what="load"))[0]
        except BaseException:
            await self.end()
            raise
        self.arithmetic = first["arithmetic"]
        return self

    async def ask(self, message: Message, *, what: str) -> list[dict[str, Any]]:
        """Return each rank's answer. Raises RankEnded, or the error that a rank tells of."""
        self._phases = ["the beginning"] * self._settings.num
        self._progressed_at = time.monotonic()
        with telling_of_machines():
            async with self._settings.place.carried(message) as messages:
                return await self._ask(messages, what=what)

    async def _ask(self, messages: Sequence[Message], *, what: str) -> list[dict[str, Any]]:
        name = f"trainer: {what} by {self._settings.num} ranks"
        tasks = [
            asyncio.create_task(self._answer(rank, message), name=f"{name}: rank {rank}")
            for rank, message in enumerate(messages)
        ]
        try:
            with waiting(name, limit_s=self._limit_s):
                await self._wait(tasks, name)
        finally:
            await end_tasks(*tasks)
        return [task.result() for task in tasks]

    async def end(self) -> None:
        """Kill all ranks, now; ending twice is fine."""
        await each_to_its_end(*(rank.close() for rank in self.ranks))

    async def _open(self, rank: int) -> None:
        settings = self._settings
        log = settings.run.logs / f"rank-{rank}.log"
        self._log_starts.append(log.stat().st_size if log.exists() else 0)
        self.ranks.append(await settings.place.open(rank, settings.environments[rank]))

    async def _answer(self, rank: int, message: Message) -> dict[str, Any]:
        process = self.ranks[rank]
        try:
            await process.send({**message, "rank": rank})
        except ConnectionError as error:
            raise _Gone from error
        while (answer := await process.receive()) is not None:
            self._progressed_at = time.monotonic()
            if answer["type"] == "error":
                raise error_of(answer)
            if answer["type"] == "done":
                return answer
            self._phases[rank] = answer["phase"]
        raise _Gone

    async def _wait(self, tasks: Sequence["asyncio.Task[dict[str, Any]]"], name: str) -> None:
        pending = set(tasks)
        while pending:
            left_s = self._progressed_at + self._limit_s - time.monotonic()
            if left_s <= 0:
                raise RankEnded(await self._why_hung(tasks, name))
            done, pending = await asyncio.wait(
                pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            try:
                for task in done:
                    task.result()
            except _Gone:
                raise RankEnded(await self._why_ended()) from None

    async def _why_ended(self) -> str:
        """Return which rank ended first, as far as that can be told, and what it said last."""
        ends = [asyncio.create_task(rank.wait()) for rank in self.ranks]
        await asyncio.wait(ends, timeout=_END_S, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(ends, timeout=_FOLLOW_S)
        for task in ends:
            task.cancel()
        rank = self._first_to_end()
        process, status = self.ranks[rank], self.ranks[rank].status
        how = "has closed its socket" if status is None else f"has ended ({how_it_ended(status)})"
        if process.why_gone is not None:
            how = f"is gone: {process.why_gone},"
        await process.bring_log()
        log = self._settings.run.logs / f"rank-{rank}.log"
        words = last_words(self._log(rank), was_killed=status is None or status < 0)
        return (
            f"rank {rank} of the trainer's {self._settings.num}{process.where} {how} at "
            f"{self._phases[rank]}; {log} ends with:\n{words}"
        )

    def _first_to_end(self) -> int:
        """Return the rank that the others' ends follow from: its machine is gone, or it has ended
        by itself."""
        gone = [rank for rank, process in enumerate(self.ranks) if process.why_gone is not None]
        statuses = {
            rank: process.status
            for rank, process in enumerate(self.ranks)
            if process.status is not None
        }
        first = [rank for rank, status in statuses.items() if status != PEER_GONE]
        return (gone or first or list(statuses) or [0])[0]

    async def _why_hung(self, tasks: Sequence["asyncio.Task[Any]"], name: str) -> str:
        """Return which ranks the others wait for; the stacks of all go to their logs."""
        for rank_process in self.ranks:
            rank_process.show_stacks()
        await asyncio.sleep(_STACKS_S)
        late = [rank for rank, task in enumerate(tasks) if not task.done()]
        busy = [rank for rank in late if self._phases[rank] != WAITING] or late
        places = ", ".join(
            f"rank {rank}{self.ranks[rank].where} at {self._phases[rank]}" for rank in busy
        )
        sentence = (
            f"{name} has made no progress for {self._limit_s:g} s, the limit of "
            f"trainer.rank_timeout_s: {places}; stacks are in "
            f"{self._settings.run.logs}/rank-{busy[0]}.log"
        )
        report_breach(sentence)
        return sentence

    def _log(self, rank: int) -> str:
        file = self._settings.run.logs / f"rank-{rank}.log"
        if not file.exists():  # of a machine that was gone before
            return ""
        with file.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_starts[rank], size - _LOG_BYTES))
            return log.read().decode(errors="replace")


class _Gone(Exception):
    """A rank has closed its end of the socket."""


@contextmanager
def telling_of_machines() -> Iterator[None]:
    """Raise RankEnded where the machine of a rank cannot be asked, or is gone."""
    try:
        yield
    except EngineError as error:
        raise RankEnded(str(error)) from error
