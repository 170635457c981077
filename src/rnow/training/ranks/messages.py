"""How a run and the ranks of its trainer speak: JSON over a socket each, one answer a message.

    run                                                    every rank
    {"type": "listen", "address"}                      ─▶  the first one of several machines: is
                                                           where the others find it
    {"type": "load", "rank", "num_ranks", "rendezvous",
     "is_sharded", "device", "config", "student", "run",
     "num_steps"}                                      ─▶  meets the others, loads the student
    {"type": "restore", "folder"}                      ─▶  puts a checkpoint back
    {"type": "update", "step", "ids", "journal",
     "again"}                                          ─▶  makes it, from the step's journal
    {"type": "probe", "token_ids", "start"}            ─▶  log-probabilities of one sequence
    {"type": "save", "folder", "adapter_dtype"}        ─▶  the first one: what an engine loads
    {"type": "swap"}                                   ─▶  the weights before the last update
    {"type": "checkpoint", "folder", "step", "scalars"} ─▶ what a run goes on from
                                   ◀─ {"type": "progress", "phase": "micro-batch 2 of 5"}
                                   ◀─ {"type": "done", …}
                                   or {"type": "error", "error": "BadNumbersError", "message"}

A batch is not in a message: it is on disk as the step's journal, so that the same update can be
made again by other processes. Ranks of other machines are given what they read as files there, and
what they write is brought back (rnow.cluster.ranks).
"""

from collections.abc import Mapping
from typing import Any

from rnow import errors
from rnow.errors import RnowError

Message = Mapping[str, Any]

# A rank ends with it where another one was gone: whoever asks why looks for that one.
PEER_GONE = 75
WAITING = "exchange"  # the phase in which a rank waits for the others


def error_of(answer: Message) -> RnowError:
    """Return the error that a rank tells of, as it was raised there."""
    kind: type[RnowError] = getattr(errors, answer["error"])
    return kind(answer["message"])
