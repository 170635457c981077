"""One rank of the trainer: `python -m rnow.training.ranks.program`, started by processes.py.

It answers one message after the other (messages.py), and ends with the socket. What it prints, and
the stacks of its threads when it is asked for them, is in logs/rank-N.log.
"""

import faulthandler
import os
import signal
import socket
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rnow.config.settings import Config
from rnow.errors import CheckpointError, RnowError
from rnow.learner.ranks.group import Ranks, is_lost_peer
from rnow.learner.student import Student
from rnow.records import Batch, RolloutId
from rnow.runs.bad import keep_bad_batch
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import read_journal
from rnow.runtime import kill_points
from rnow.runtime.channel import pack, receive, socket_of_worker
from rnow.training.looked_into import keep_logprobs
from rnow.training.ranks.messages import PEER_GONE, Message

STACKS_SIGNAL = signal.SIGUSR1


def main() -> None:
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    rank = _Rank(socket_of_worker())
    try:
        rank.serve()
    except Exception as error:
        traceback.print_exc()
        # At once: whatever ends in order would wait for the other ranks first.
        os._exit(PEER_GONE if is_lost_peer(error) else 1)
    os._exit(0)


class _Rank:
    """What this process holds between two messages."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._said: list[str] = []
        self._is_again = False  # an update that was made before, and is only caught up on
        self._listening: socket.socket | None = None  # where the others will find this one

    def serve(self) -> None:
        """Answer until nobody asks any more."""
        while (message := receive(self._stream)) is not None:
            handle: Callable[[Message], dict[str, Any]] = getattr(self, f"_{message['type']}")
            try:
                answer = {"type": "done", **handle(message)}
            except RnowError as error:
                answer = {"type": "error", "error": type(error).__name__, "message": str(error)}
            self._stream.sendall(pack(answer))

    def _listen(self, message: Message) -> dict[str, Any]:
        self._listening = socket.create_server((message["address"], 0))
        host, port = self._listening.getsockname()
        return {"rendezvous": f"tcp://{host}:{port}"}

    def _load(self, message: Message) -> dict[str, Any]:
        kill_points.prefix(f"rank{message['rank']}/")
        self._run = RunDirectory(Path(message["run"]))
        self._config = Config.model_validate(message["config"])
        self._ranks = Ranks.join(
            rank=message["rank"],
            size=message["num_ranks"],
            rendezvous=message["rendezvous"],
            device=message["device"],
            is_sharded=message["is_sharded"],
            tell=self._tell,
            listening=self._listening,
        )
        is_first = message["rank"] == 0
        self._student = Student.load(
            self._config,
            student=Path(message["student"]),
            device=message["device"],
            num_steps=message["num_steps"],
            on_bad_numbers=self._keep if is_first else lambda batch, reason: None,
            on_logprobs=partial(keep_logprobs, self._run) if is_first else lambda *_: None,
            ranks=self._ranks,
        )
        self._ranks.check_alike(self._student.policy.trainable_state(), when="once loaded")
        kill_points.point("loaded")
        return {"arithmetic": self._student.arithmetic}

    def _restore(self, message: Message) -> dict[str, Any]:
        step, scalars = self._student.restore(Path(message["folder"]))
        kill_points.point("restored")
        return {"step": step, "scalars": dict(scalars)}

    def _update(self, message: Message) -> dict[str, Any]:
        self._said, self._is_again = [], message["again"]
        ids = [RolloutId(*numbers) for numbers in message["ids"]]
        metrics = self._student.update(_read_batch(Path(message["journal"]), message["step"], ids))
        kill_points.point("updated")
        return {"metrics": metrics, "said": self._said}

    def _probe(self, message: Message) -> dict[str, Any]:
        if not self._is_asked:
            return {}
        logprobs = self._student.probe_logprobs(message["token_ids"], start=message["start"])
        kill_points.point("probed")
        return {"logprobs": logprobs.tolist()}

    def _save(self, message: Message) -> dict[str, Any]:
        self._student.save(Path(message["folder"]), adapter_dtype=message["adapter_dtype"])
        kill_points.point("saved")
        return {}

    def _swap(self, message: Message) -> dict[str, Any]:
        self._student.swap()
        return {}

    def _checkpoint(self, message: Message) -> dict[str, Any]:
        self._student.save_checkpoint(
            Path(message["folder"]), step=message["step"], scalars=message["scalars"]
        )
        return {}

    @property
    def _is_asked(self) -> bool:
        """Whether a forward is this rank's to make: of weights that are cut it is everybody's."""
        return self._ranks.rank == 0 or self._ranks.is_sharded

    def _tell(self, phase: str) -> None:
        self._stream.sendall(pack({"type": "progress", "phase": phase}))

    def _keep(self, batch: Batch, reason: str) -> None:
        if self._is_again:
            return
        is_small = self._config.model.tuning == "lora"
        save = partial(self._student.save_checkpoint, step=batch.step, scalars={})
        told = keep_bad_batch(self._run, batch, reason, save_weights=save if is_small else None)
        self._said.append(told)


def _read_batch(journal: Path, step: int, ids: list[RolloutId]) -> Batch:
    found = {scored.trajectory.id: scored for scored in read_journal(journal)}
    if missing := [id for id in ids if id not in found]:
        raise CheckpointError(
            f"{journal} lacks rollout {missing[0]} of the batch ({len(missing)} of {len(ids)} in "
            "all): something else has changed or removed it; the same command goes on from the "
            "last checkpoint"
        )
    return Batch(step=step, scored=tuple(found[id] for id in ids))


if __name__ == "__main__":
    main()
