"""What a device plan is made from, and what it says: `Workload` in, `Plan` out.

Nothing is decided here. All sizes are bytes; what the terminal shows is in GiB, as GPUs count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rnow.config.settings import Config, TeacherSettings
from rnow.engines.vllm.command import TEACHER_TOKENS_A_STEP
from rnow.plan.devices import Gpu
from rnow.plan.figures import ModelFigures
from rnow.plan.memory import GIB, RoleMemory, ServerLoad, TrainerLoad

Role = Literal["trainer", "student", "teacher"]
EngineKind = Literal["vllm", "local", "url"]  # url: a server that somebody else runs

_DTYPE_BYTES = {"auto": 2, "bfloat16": 2, "float32": 4}  # auto: bfloat16 on a GPU
_MAX_SEQS = 256  # vLLM's own limit on most GPUs; what comes beyond it waits
_BATCHED_TOKENS, _SMALL_BATCHED_TOKENS = 8192, 2048  # the student's: vLLM's own defaults
_BIG_GPU = 70 * GIB  # from here on the larger of them

_COLUMNS = ("weights", "LoRA", "optimizer", "activations", "KV cache", "log-probs", "overhead")


def num_ranks(config: Config) -> int:
    """Return how many processes make an update together."""
    resources = config.resources
    return config.trainer.num_ranks or (1 if resources is None else resources.trainer.gpus)


def weights_are_cut(config: Config) -> bool:
    """Return whether each of several ranks holds a part of the student, not all of it."""
    wanted = config.trainer.shard_weights
    return config.model.tuning == "full" if wanted == "auto" else wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Everything that memory depends on: two models, what runs them, and the settings.

    What runs the roles was settled before (placing.py).
    """

    config: Config
    student: ModelFigures
    teacher: ModelFigures
    student_engine: EngineKind = "vllm"
    teacher_engine: EngineKind = "vllm"
    alone: Literal["student", "teacher"] | None = None  # only this one runs, and it samples

    def with_settings(self, settings: Mapping[str, Any]) -> "Workload":
        """Return the same with other settings, by their keys: {"model.tuning": "lora"}."""
        sections = self.config.model_dump()
        for key, value in settings.items():
            section, _, name = key.partition(".")
            sections[section][name] = value
        return replace(self, config=Config.model_validate(sections))

    def sampling(self, role: Literal["student", "teacher"], *, lora_rank: int | None) -> "Workload":
        """Return what it takes to sample in the place of `role`, and do nothing else.

        `lora_rank`: of the adapter that is sampled from; None: the model as it is.
        """
        settings: dict[str, Any] = {"model.tuning": "full"}
        if lora_rank is not None:
            settings = {"model.tuning": "lora", "model.qlora_rank": lora_rank}
        return replace(self.with_settings(settings), alone=role)

    @property
    def teacher_settings(self) -> TeacherSettings:
        # Without a teacher only the student is planned, alone: nobody reads this one's settings.
        return self.config.teacher or TeacherSettings(path=self.config.model.path)

    @property
    def max_context_window(self) -> int:
        return self.config.rollout.max_context_window

    @property
    def num_rollouts(self) -> int:
        """How many run at the same time: in a step; alone, as many as may."""
        data, concurrency = self.config.data, self.config.rollout.concurrency
        in_step = data.batch_size * data.group_size
        return min(in_step, concurrency) if self.alone is None else concurrency

    def num_gpus(self, role: Role) -> int | None:
        """Return how many GPUs the settings give `role`; None: planned."""
        resources = self.config.resources
        if resources is None:
            return None
        if role == "trainer":
            return self.num_ranks
        return resources.teacher.gpus if role == "teacher" else resources.student.gpus

    @property
    def num_ranks(self) -> int:
        """Return how many processes train together, each on a GPU of its own."""
        return num_ranks(self.config)

    def figures(self, role: Role) -> ModelFigures:
        return self.teacher if role == "teacher" else self.student

    def engine(self, role: Role) -> EngineKind:
        """Return what runs `role`; the trainer is no server, as local engines are none."""
        if self.alone not in (None, role):
            return "url"  # takes nothing here
        if role == "trainer":
            return "local"
        return self.teacher_engine if role == "teacher" else self.student_engine

    def replicas(self, role: Role) -> int | None:
        """Return how many servers `role` is to have; None: not said, or no servers."""
        if self.engine(role) != "vllm":
            return None
        is_teacher = role == "teacher"
        return self.teacher_settings.replicas if is_teacher else self.config.engine.replicas

    @property
    def trainer_load(self) -> TrainerLoad:
        model, trainer = self.config.model, self.config.trainer
        return TrainerLoad(
            tuning=model.tuning,
            lora_rank=model.qlora_rank,
            dtype_bytes=_DTYPE_BYTES[model.dtype],
            # A trajectory that is longer than a micro-batch goes through the network alone.
            max_tokens=max(trainer.max_tokens_per_micro_batch, self.max_context_window),
            checkpointing=trainer.activation_checkpointing is not False,
            num_parts=self.num_ranks if weights_are_cut(self.config) else 1,
        )

    def server_load(self, role: Role, gpu_bytes: int) -> ServerLoad:
        """Return what a server of `role` is asked to do on GPUs of this size."""
        model, teacher = self.config.model, self.teacher_settings
        is_teacher = role == "teacher"
        scores = is_teacher and self.alone is None
        sampled_a_step = _BATCHED_TOKENS if gpu_bytes >= _BIG_GPU else _SMALL_BATCHED_TOKENS
        concurrency = teacher.concurrency if scores else self.config.rollout.concurrency
        return ServerLoad(
            dtype_bytes=_DTYPE_BYTES[teacher.dtype if is_teacher else self.config.engine.dtype],
            quantization=teacher.quantization if is_teacher else None,
            # Whoever asks for scores is given a token beside them; it needs its place.
            max_model_len=self.max_context_window + (1 if scores else 0),
            max_num_batched_tokens=TEACHER_TOKENS_A_STEP if scores else sampled_a_step,
            max_num_seqs=min(concurrency, _MAX_SEQS),
            lora_rank=None if scores or model.tuning == "full" else model.qlora_rank,
            scores=scores,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """The numbers that the vLLM servers of one role are started with."""

    num_replicas: int
    tensor_parallel_size: int
    gpu_memory_utilization: float
    load: ServerLoad
    num_kv_tokens: int  # that the KV cache of one replica has room for


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePlan:
    """Where a role runs. Replica i of a server has GPUs i·size to (i + 1)·size of `gpus`."""

    role: Role
    gpus: tuple[int, ...]  # as CUDA counts those that this process may use
    memory: RoleMemory  # on each of them
    server: ServerPlan | None  # None: in this process

    @property
    def replica_gpus(self) -> tuple[tuple[int, ...], ...]:
        size = 1 if self.server is None else self.server.tensor_parallel_size
        starts = range(0, len(self.gpus), size)
        return tuple(self.gpus[start : start + size] for start in starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan that fits. Roles whose engine is elsewhere (`url`) are not in it."""

    roles: tuple[RolePlan, ...]
    gpus: tuple[Gpu, ...]
    max_context_window: int
    num_rollouts: int

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
        rows = [["GiB a GPU", "GPU", *_COLUMNS, "total"], *map(_row, self.roles)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        engines = [self._engine_line(item) for item in self.roles if item.role != "trainer"]
        return (*table, *self._gpu_lines(), *engines)

    def _gpu_lines(self) -> list[str]:
        """Say how full each GPU gets, those that are alike in one line."""
        alike: dict[str, list[int]] = {}
        for index, gpu in enumerate(self.gpus):
            used = sum(item.memory.total for item in self.roles if index in item.gpus)
            size = (gpu.memory_mib or 0) << 20
            share = f"{_gib(used)} of {_gib(size)} GiB" if used else "not used"
            alike.setdefault(f"{gpu.name}: {share}", []).append(index)
        return [f"GPU {_span(indices)}, {text}" for text, indices in alike.items()]

    def _engine_line(self, item: RolePlan) -> str:
        server = item.server
        if server is None:
            return f"{item.role}: in this process, with a KV cache for one rollout at full length"
        many = "s" if server.num_replicas > 1 else ""
        size = server.tensor_parallel_size
        over = f" over {size} GPUs" + (" each" if many else "") if size > 1 else ""
        room = server.num_kv_tokens // server.load.max_model_len * server.num_replicas
        some = f"{room} of {self.num_rollouts}" if room < self.num_rollouts else "all"
        return (
            f"{item.role}: {server.num_replicas} vLLM server{many}{over} with "
            f"gpu_memory_utilization {server.gpu_memory_utilization:g}; "
            f"room for {some} rollouts at full length ({self.max_context_window:,} tokens)"
        )


def _row(item: RolePlan) -> list[str]:
    memory = item.memory
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
    return [item.role, gpus, *(_gib(cell) if cell else "·" for cell in cells), _gib(memory.total)]


def _span(gpus: Sequence[int]) -> str:
    """Write "0", "1-4" or "1, 3"."""
    if len(gpus) > 1 and list(gpus) == list(range(gpus[0], gpus[-1] + 1)):
        return f"{gpus[0]}-{gpus[-1]}"
    return ", ".join(map(str, gpus))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f}"
