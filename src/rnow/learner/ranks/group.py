"""This process as one of several that make an update together.

    the whole batch ─▶ micro-batches ─▶ dealt ─▶ gradient of mine ─┐
                                                                   ├─▶ sum over ranks ─▶ clip, AdamW
                                          the other ranks' ────────┘    everywhere alike

Weights that every rank holds whole have their gradients summed once an update, as one flat vector
in the order of names. Weights that are cut over the ranks (sharding.py) are summed as they come out
of backward. Every sum is made in one fixed order, so the same number of ranks gives the same bits.
"""

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rnow.errors import RanksDifferError
from rnow.learner.objective import LossTotals
from rnow.learner.packing import MicroBatch
from rnow.learner.ranks.dealing import cost, deal
from rnow.records import FloatArray

# Whoever started the ranks has the deadlines: a rank whose peer is slow must not end by itself.
_NO_LIMIT = timedelta(days=7)

_MAXIMUM = "max_advantage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The group and this process's place in it. `Ranks.join` makes it."""

    rank: int
    size: int
    device: torch.device
    is_sharded: bool  # frozen or trained weights are cut over the ranks
    group: dist.ProcessGroup
    tell: Callable[[str], None] = lambda phase: None  # told what is begun, for whoever watches

    @classmethod
    def join(
        cls,
        *,
        rank: int,
        size: int,
        rendezvous: str,
        device: Literal["cuda", "cpu"],
        is_sharded: bool,
        tell: Callable[[str], None],
        listening: socket.socket | None = None,
    ) -> "Ranks":
        """Meet the others at `rendezvous`; returns when all are there.

        A URL: file:///path of one machine, or tcp://10.0.0.5:4711 where the first rank is
        `listening`.
        """
        on = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            **_where(rendezvous, rank=rank, listening=listening),
            rank=rank,
            world_size=size,
            timeout=_NO_LIMIT,
        )
        group = dist.group.WORLD
        assert group is not None
        return cls(rank=rank, size=size, device=on, is_sharded=is_sharded, group=group, tell=tell)

    @property
    def name(self) -> str:
        """What the bits of a result depend on."""
        return f"{self.size}, weights cut over them" if self.is_sharded else str(self.size)

    def share(self, micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
        """Yield what this rank computes of the batch, each with whether it counts.

        Where weights are cut, a forward is something that all ranks do together: who has fewer
        micro-batches computes one more for nothing.
        """
        hands = deal([cost(micro_batch) for micro_batch in micro_batches], self.size)
        mine = hands[self.rank]
        num = max(map(len, hands)) if self.is_sharded else len(mine)
        for turn in range(num):
            self.tell(f"micro-batch {turn + 1} of {num}")
            counts = turn < len(mine)
            yield micro_batches[mine[turn] if counts else -1], counts

    def sum_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Leave the sum over all ranks in every `.grad`; a rank that computed none adds zeros."""
        self.tell("exchange")
        whole = [
            parameter
            for _, parameter in sorted(parameters.items())
            if not hasattr(parameter, "full_tensor")
        ]
        for dtype in sorted({parameter.dtype for parameter in whole}, key=str):
            self._sum_flat([parameter for parameter in whole if parameter.dtype == dtype])

    def combine(self, totals: LossTotals | None, *, num_turns: int) -> LossTotals:
        """Return the totals of all ranks' micro-batches; None: this rank had none."""
        if totals is None:
            totals = _no_totals(num_turns, self.device)
        names = [field.name for field in fields(LossTotals) if field.name != _MAXIMUM]
        parts = [getattr(totals, name).reshape(-1).double() for name in names]
        sums = torch.cat(parts)
        greatest = totals.max_advantage.double().clone()
        dist.all_reduce(sums, dist.ReduceOp.SUM, group=self.group)
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=self.group)
        pieces = torch.split(sums, [len(part) for part in parts])
        combined = {
            name: piece.reshape(getattr(totals, name).shape)
            for name, piece in zip(names, pieces, strict=True)
        }
        return LossTotals(**combined, max_advantage=greatest)

    def check_alike(self, parameters: Mapping[str, Tensor], *, when: str) -> None:
        """Raise RanksDifferError where ranks hold different bits of what each holds whole."""
        names = sorted(
            name for name, tensor in parameters.items() if not hasattr(tensor, "full_tensor")
        )
        if not names:
            return
        sums = torch.stack([_checksum(parameters[name]) for name in names])
        # The greatest of x and of -x over all ranks: equal where x is one number.
        both = torch.cat([sums, -sums])
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self.group)
        high, low = both.chunk(2)
        differing = [name for name, one in zip(names, (high != -low).tolist(), strict=True) if one]
        if differing:
            raise RanksDifferError(
                f"the {self.size} ranks of the trainer hold different weights {when}: "
                f"{differing[0]} ({len(differing)} of {len(names)} in all). What they computed "
                "since the last checkpoint is not to be trusted and is not kept. Check the GPUs "
                "(nvidia-smi -q -d ECC); the same command goes on from the checkpoint"
            )

    def is_cut(self, tensors: Iterable[Tensor]) -> bool:
        """Whether this rank has a part of `tensors` alone; of one kind they are all."""
        return any(hasattr(tensor, "full_tensor") for tensor in tensors)

    def whole(self, tensor: Tensor) -> Tensor:
        """Return `tensor` itself, or all of it where it is cut over the ranks: all ask for it."""
        gather = getattr(tensor, "full_tensor", None)
        return tensor if gather is None else gather()

    def join_all(self, found: dict[int, FloatArray]) -> dict[int, FloatArray]:
        """Return on the first rank what all have found, on the others what they had."""
        parts: list[dict[int, FloatArray] | None] | None = None
        if self.rank == 0:
            parts = [None] * self.size
        dist.gather_object(found, parts, group_dst=0, group=self.group)
        return found if parts is None else {k: v for part in parts for k, v in (part or {}).items()}

    def wait_for_all(self) -> None:
        dist.all_reduce(torch.zeros(1, device=self.device), group=self.group)

    def _sum_flat(self, parameters: Sequence[nn.Parameter]) -> None:
        sizes = [parameter.numel() for parameter in parameters]
        flat = torch.zeros(sum(sizes), dtype=parameters[0].dtype, device=parameters[0].device)
        for parameter, piece in zip(parameters, torch.split(flat, sizes), strict=True):
            if parameter.grad is not None:
                piece.copy_(parameter.grad.reshape(-1))
            parameter.grad = None  # one after the other, so that there are never two of all
        dist.all_reduce(flat, dist.ReduceOp.SUM, group=self.group)
        for parameter, piece in zip(parameters, torch.split(flat, sizes), strict=True):
            parameter.grad = piece.view_as(parameter)


def _where(rendezvous: str, *, rank: int, listening: socket.socket | None) -> dict[str, Any]:
    """Return how ranks find each other. torch by itself would listen on every interface."""
    url = urlsplit(rendezvous)
    if url.scheme == "file":
        return {"init_method": rendezvous}
    assert url.hostname is not None
    assert url.port is not None
    store = dist.TCPStore(  # type: ignore[attr-defined]
        url.hostname,
        url.port,
        is_master=rank == 0,
        wait_for_workers=False,
        timeout=_NO_LIMIT,
        master_listen_fd=None if listening is None else listening.detach(),
    )
    return {"store": store}


def is_lost_peer(error: Exception) -> bool:
    """Return whether an exception tells that another rank has ended."""
    kinds = (dist.DistBackendError, dist.DistNetworkError)
    return isinstance(error, kinds) or "gloo" in str(error).lower()


def _no_totals(num_turns: int, device: torch.device) -> LossTotals:
    nothing = {
        field.name: torch.zeros((), dtype=torch.float64, device=device)
        for field in fields(LossTotals)
    }
    per_turn = torch.zeros(num_turns, dtype=torch.float64, device=device)
    return LossTotals(**(nothing | {"turn_reverse_kl": per_turn, "turn_actions": per_turn.clone()}))


def _checksum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor's bits as whole numbers, int64."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(bits).sum(dtype=torch.int64)
