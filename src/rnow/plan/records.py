"""What a device plan says: which GPUs a role has, how full they get, how long it works.

All sizes are bytes; what the terminal shows is in GiB, as GPUs count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rnow.plan.device_table import device_or_other
from rnow.plan.devices import Gpu
from rnow.plan.memory import GIB, RoleMemory, ServerLoad
from rnow.plan.pace import Gang
from rnow.runtime.console import duration

Role = Literal["trainer", "student", "teacher"]
EngineKind = Literal["vllm", "local", "url"]  # url: a server that somebody else runs

_COLUMNS = ("weights", "LoRA", "optimizer", "activations", "KV cache", "log-probs", "overhead")
_MOST_SERVERS_LISTED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """The numbers that the vLLM servers of one role are started with."""

    num_replicas: int
    tensor_parallel_size: int
    gpu_memory_utilization: float
    load: ServerLoad
    num_texts: int | None  # of full length that one replica's KV cache holds; None: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePlan:
    """Where a role runs. Replica i of a server has GPUs i·size to (i + 1)·size of `gpus`."""

    role: Role
    gpus: tuple[int, ...]  # as CUDA counts those that this process may use
    memory: RoleMemory | None  # on each of them; None: nothing is known of the model's
    server: ServerPlan | None  # None: in this process, or a trainer's ranks

    @property
    def size(self) -> int:
        """GPUs of a server; a rank has one."""
        return 1 if self.server is None else self.server.tensor_parallel_size

    @property
    def num_servers(self) -> int:
        """Servers, or ranks of a trainer."""
        return len(self.gpus) // self.size

    @property
    def replica_gpus(self) -> tuple[tuple[int, ...], ...]:
        starts = range(0, len(self.gpus), self.size)
        return tuple(self.gpus[start : start + self.size] for start in starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """The seconds that the roles work in a step; a role that is not in it works elsewhere.

    StepTimes(seconds={"student": 65.0, "teacher": 196.0, "trainer": 250.0})
    """

    seconds: Mapping[Role, float]
    sharing: frozenset[Role] = field(default_factory=frozenset)  # of these engines on one GPU

    @property
    def step_s(self) -> float:
        rolled, scored = self._of("student"), self._of("teacher")
        both = rolled + scored if len(self.sharing) > 1 else max(rolled, scored)
        return both + self._of("trainer")

    @property
    def bound(self) -> Role:
        """The role that works longest, and so the one whose GPUs are worth most."""
        return max(self.seconds, key=lambda role: self.seconds[role])

    def _of(self, role: Role) -> float:
        return self.seconds.get(role, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan that fits. Roles whose engine is elsewhere (`url`) are not in it."""

    roles: tuple[RolePlan, ...]
    gpus: tuple[Gpu, ...]
    max_context_window: int
    num_rollouts: int
    gangs: Mapping[Role, Gang]  # what times are made from; none of a model without figures
    times: StepTimes  # how long the roles work in a step, estimated
    notes: tuple[str, ...] = ()  # what is not known, and what is no more than a bound

    def role(self, name: Role) -> RolePlan | None:
        return next((item for item in self.roles if item.role == name), None)

    @property
    def is_shared(self) -> bool:
        """Whether two processes share a GPU: then servers start one after another, the trainer
        last, since vLLM takes what others allocate while it measures for its own use."""
        used = [gpu for item in self.roles for gpu in item.gpus]
        return len(used) > len(set(used))

    def lines(self) -> tuple[str, ...]:
        """Return the plan for the terminal: a table in GiB a GPU, and a line a GPU and engine."""
        engines = [self._engine_line(item) for item in self.roles if item.role != "trainer"]
        return (*self._table(), *self._gpu_lines(), *engines, *self._time_lines(), *self.notes)

    @property
    def gpu_hours(self) -> float:
        """Of one step, tools not counted; GPUs that are not used are had all the same."""
        return self.times.step_s * len(self.gpus) / 3600

    def _time_lines(self) -> list[str]:
        """Say how long each role works in a step, and which of them bounds it."""
        seconds = self.times.seconds
        if "trainer" not in seconds or any(item.memory is None for item in self.roles):
            return []
        each = ", ".join(f"{item.role} {seconds_text(seconds[item.role])}" for item in self.roles)
        whole = seconds_text(self.times.step_s)
        return [
            f"a step, estimated without tools: {each}; {whole} in all, bound by the "
            f"{self.times.bound}; {self.gpu_hours:.2g} GPU hours ({self._basis()})"
        ]

    def _basis(self) -> str:
        names = {self.gpus[gpu].name for item in self.roles for gpu in item.gpus}
        return ", ".join(sorted({device_or_other(name)[1] for name in names}))

    def _table(self) -> list[str]:
        known = [_row(item, item.memory) for item in self.roles if item.memory is not None]
        if not known:
            return []
        rows = [["GiB a GPU", "GPU", *_COLUMNS, "total"], *known]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]

    def _gpu_lines(self) -> list[str]:
        """Say how full each GPU gets, those that are alike in one line."""
        alike: dict[str, list[int]] = {}
        for index, gpu in enumerate(self.gpus):
            here = [item for item in self.roles if index in item.gpus]
            used = sum(item.memory.total for item in here if item.memory is not None)
            share = (
                f"{_gib(used)} of {_gib((gpu.memory_mib or 0) << 20)} GiB" if used else "not used"
            )
            if any(item.memory is None for item in here):
                share = f"the {' and '.join(item.role for item in here)}'s, memory not known"
            alike.setdefault(f"{gpu.name}: {share}", []).append(index)
        return [f"GPU {_span(indices)}, {text}" for text, indices in alike.items()]

    def _engine_line(self, item: RolePlan) -> str:
        server = item.server
        if server is None:
            return f"{item.role}: in this process, with a KV cache for one rollout at full length"
        many = "s" if server.num_replicas > 1 else ""
        size = server.tensor_parallel_size
        over = f" over {size} GPUs" + (" each" if many else "") if size > 1 else ""
        text = (
            f"{item.role}: {server.num_replicas} vLLM server{many}{over} with "
            f"gpu_memory_utilization {server.gpu_memory_utilization:g}"
        )
        if server.num_texts is None:
            return text
        room = server.num_texts * server.num_replicas
        some = f"{room} of {self.num_rollouts}" if room < self.num_rollouts else "all"
        return (
            f"{text}; room for {some} rollouts at full length ({self.max_context_window:,} tokens)"
        )


def _row(item: RolePlan, memory: RoleMemory) -> list[str]:
    cells = (
        memory.weights,
        memory.lora,
        memory.gradients + memory.optimizer,
        memory.activations,
        memory.kv_cache,
        memory.prompt_logprobs,
        memory.overhead,
    )
    gpus = " | ".join(_span(gpus) for gpus in item.replica_gpus)
    if len(item.replica_gpus) > _MOST_SERVERS_LISTED:
        gpus = f"{_span(item.gpus)}, {len(item.replica_gpus)} × {item.size}"
    return [item.role, gpus, *(_gib(cell) if cell else "·" for cell in cells), _gib(memory.total)]


def _span(gpus: Sequence[int]) -> str:
    """Write "0", "1-4" or "1, 3"."""
    if len(gpus) > 1 and list(gpus) == list(range(gpus[0], gpus[-1] + 1)):
        return f"{gpus[0]}-{gpus[-1]}"
    return ", ".join(map(str, gpus))


def seconds_text(seconds: float) -> str:
    """Write seconds as people read them."""
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f}"
