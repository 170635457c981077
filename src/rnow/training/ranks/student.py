"""A student that several ranks train, as one: what the run asks for goes to all of them.

    restore ─▶ update 7 ─▶ update 8 ─▶ checkpoint        a rank ends in update 8
                                                          └─▶ new processes: load, restore,
                                                              update 7 and 8 from their journals

An update depends on the weights and on the step's journal alone, so that those made since the last
checkpoint can be made again, to the bit. Three ends without a finished update between them end the
run.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rnow.errors import RankError, RnowError
from rnow.records import Batch, FloatArray
from rnow.training.ranks.processes import RankEnded, RankProcesses, RankSettings

MAX_ENDS = 3
_SWAP = {"type": "swap"}

_T = TypeVar("_T")


class RankedStudent:
    """As `learner.student.Student`. Its calls block, so they are for other threads than the loop's.

    student = await RankedStudent.open(settings, say=print)
    await asyncio.to_thread(student.update, batch)
    await student.aclose()
    """

    def __init__(
        self, settings: RankSettings, processes: RankProcesses, *, say: Callable[[str], None]
    ) -> None:
        self.arithmetic: Mapping[str, str] = processes.arithmetic
        self._settings = settings
        self._processes: RankProcesses | None = processes
        self._say = say
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._one_at_a_time = asyncio.Lock()
        self._num_ends = 0  # since an update was last finished
        self._base: Path | None = None  # the checkpoint that new processes begin with
        self._updates: list[dict[str, Any]] = []  # made since then
        self._is_swapped = False

    @classmethod
    async def open(cls, settings: RankSettings, *, say: Callable[[str], None]) -> "RankedStudent":
        """Start the ranks; raises RankError where one ends before it has loaded the student."""
        try:
            processes = await RankProcesses.start(settings)
        except RankEnded as end:
            raise RankError(f"the trainer cannot start: {end}") from end
        return cls(settings, processes, say=say)

    async def aclose(self) -> None:
        """End the ranks."""
        if self._processes is not None:
            await self._processes.end()

    def update(self, batch: Batch) -> dict[str, float]:
        """As `Trainer.update`, of a batch that is in the step's journal."""
        order = {
            "type": "update",
            "step": batch.step,
            "ids": [astuple(scored.trajectory.id) for scored in batch.scored],
            "journal": str(self._settings.run.trajectories(batch.step).absolute()),
            "again": False,
        }

        async def make() -> dict[str, float]:
            first = (await self._ask(order, what=f"update of step {batch.step}"))[0]
            self._updates.append({**order, "again": True})
            self._num_ends = 0
            for line in first["said"]:
                self._say(line)
            metrics: dict[str, float] = first["metrics"]
            return metrics

        return self._wait_for(make())

    def probe_logprobs(self, token_ids: Sequence[int], *, start: int) -> FloatArray:
        """As `Trainer.probe_logprobs`."""
        message = {"type": "probe", "token_ids": list(token_ids), "start": start}
        first = self._wait_for(self._ask(message, what="probe"))[0]
        return np.asarray(first["logprobs"], dtype=np.float32)

    def save(self, folder: Path, *, adapter_dtype: str | None = None) -> None:
        """As `Policy.save`."""
        message = {"type": "save", "folder": str(folder.absolute()), "adapter_dtype": adapter_dtype}
        self._wait_for(self._ask(message, what="save"))

    def swap(self) -> None:
        """As `Trainer.swap`; ranks that are started anew meanwhile swap too."""

        async def swap() -> None:
            await self._ask(_SWAP, what="swap")
            self._is_swapped = not self._is_swapped

        self._wait_for(swap())

    def save_checkpoint(self, folder: Path, *, step: int, scalars: Mapping[str, Any]) -> None:
        """As `Student.save_checkpoint`."""
        message = {
            "type": "checkpoint",
            "folder": str(folder.absolute()),
            "step": step,
            "scalars": dict(scalars),
        }

        async def save() -> None:
            await self._ask(message, what="checkpoint")
            if folder == self._settings.run.latest:
                self._base, self._updates = folder, []

        self._wait_for(save())

    def restore(self, folder: Path) -> tuple[int, Mapping[str, Any]]:
        """As `Student.restore`."""

        async def restore() -> dict[str, Any]:
            answers = await self._ask(_restore_message(folder), what="restore")
            self._base, self._updates = folder, []
            return answers[0]

        first = self._wait_for(restore())
        return first["step"], first["scalars"]

    def _wait_for(self, work: Coroutine[Any, Any, _T]) -> _T:
        assert threading.get_ident() != self._thread, "the event loop would wait for itself"
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _ask(self, message: Mapping[str, Any], *, what: str) -> list[dict[str, Any]]:
        """Return the ranks' answers, of new ones where some have ended."""
        async with self._one_at_a_time:
            while True:
                try:
                    if self._processes is None:
                        self._processes = await self._start_again()
                    return await self._processes.ask(message, what=what)
                except RankEnded as end:
                    await self._count(end)
                except RnowError:  # the other ranks may wait for the one that told of it
                    await self._end()
                    raise

    async def _start_again(self) -> RankProcesses:
        """Start new ranks and bring them to where the old ones were."""
        processes = await RankProcesses.start(self._settings)
        try:
            num_done = 0
            if self._base is not None:
                answers = await processes.ask(_restore_message(self._base), what="restore")
                # One more than was told of, where a rank ended with the new one in its place.
                num_done = answers[0]["step"]
            for order in self._updates:
                if order["step"] >= num_done:
                    await processes.ask(order, what=f"update of step {order['step']} once more")
            if self._is_swapped:
                await processes.ask(_SWAP, what="swap")
        except BaseException:
            await processes.end()
            raise
        return processes

    async def _count(self, end: RankEnded) -> None:
        await self._end()
        self._num_ends += 1
        if self._num_ends >= MAX_ENDS:
            raise RankError(
                f"processes of the trainer ended {MAX_ENDS} times without a finished step in "
                f"between. The last time, {end}\nIf memory ran out: lower "
                "trainer.max_tokens_per_micro_batch, or set trainer.shard_weights: true. If they "
                "were waited for too briefly: raise trainer.rank_timeout_s. What is done is saved; "
                "the same command goes on"
            ) from end
        self._say(f"{end}\nwhat it was at is done again by new processes, from the step's journal")

    async def _end(self) -> None:
        if self._processes is not None:
            await self._processes.end()
            self._processes = None


def _restore_message(folder: Path) -> dict[str, Any]:
    return {"type": "restore", "folder": str(folder.absolute())}
