"""What one role needs on each of its GPUs, before what is left is dealt out; and what it then has.

Of a model whose figures are missing nothing is counted: it gets the GPUs, and the share of their
memory, that the settings say, and the plan says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from rnow.plan.devices import Gpu
from rnow.plan.memory import RoleMemory, ServerLoad, local_memory, server_memory, trainer_memory
from rnow.plan.records import Role, RolePlan, ServerPlan
from rnow.plan.workload import Workload, gives_gpus

_UNKNOWN = "it has no row in the table, and whether it fits shows when it is loaded"
MAX_FRACTION = 0.95  # of a GPU for one server: it refuses to start where others have the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one role needs on each of its GPUs, before the KV cache is dealt out."""

    role: Role
    memory: RoleMemory  # without KV cache
    load: ServerLoad | None  # None: in this process
    min_kv: int = 0  # of one text of full length
    text_bytes: int = 0  # the same, whatever the settings ask for
    num_missing: int = 0  # bytes by which the user's gpu_memory_utilization is too small
    is_known: bool = True  # else the user's word is taken

    @property
    def need(self) -> int:
        return self.memory.total + self.min_kv


def make_part(workload: Workload, role: Role, *, gpu_bytes: int, size: int) -> Part:
    """Return what `role` needs on each of `size` GPUs that a server of it has."""
    figures = workload.known_figures(role)
    if figures is None:
        load = workload.server_load(role, gpu_bytes) if workload.engine(role) == "vllm" else None
        nothing = RoleMemory(weights=0, overhead=0)
        return Part(role=role, memory=nothing, load=load, is_known=False)
    if role == "trainer":
        memory = trainer_memory(figures, workload.trainer_load)
        return Part(role=role, memory=memory, load=None)
    load = workload.server_load(role, gpu_bytes)
    if role == "student" and workload.config.model.tuning == "full" and workload.alone is None:
        # Served with a head of its own, so that new weights reach it (engines/vllm/untied.py).
        figures = figures.untied()
    min_kv = figures.kv_bytes(
        load.min_kv_tokens,
        dtype_bytes=load.dtype_bytes,
        num_shards=size,
        scheduled=load.max_num_batched_tokens,
    )
    part = Part(
        role=role,
        memory=server_memory(figures, load, num_gpus=size),
        load=load,
        min_kv=min_kv,
        text_bytes=min_kv,
    )
    if workload.engine(role) == "local":
        # A student in training: the policy version in use and the next.
        num_policies = 0 if load.scores else 2
        if workload.alone is not None:
            num_policies = 0 if load.lora_rank is None else 1
        memory = local_memory(figures, load, num_policies=num_policies)
        min_kv = figures.local_kv_bytes(load.min_kv_tokens, dtype_bytes=load.dtype_bytes)
        return replace(part, memory=memory, load=None, min_kv=min_kv)
    fraction = workload.config.engine.gpu_memory_utilization
    if fraction is None:
        return part
    # All that the user lets vLLM have and it does not need itself goes to the KV cache.
    kv_bytes = int(fraction * gpu_bytes) - inside(part.memory)
    missing = max(0, part.min_kv - kv_bytes)
    return replace(part, min_kv=max(part.min_kv, kv_bytes), num_missing=missing)


def inside(memory: RoleMemory) -> int:
    """Return what vLLM counts as its own when it measures itself."""
    return memory.total - memory.prompt_logprobs


def unknown_plan(workload: Workload, part: Part, chosen: tuple[int, ...], size: int) -> RolePlan:
    """Return the plan of a role of whose memory nothing is known: as the settings say."""
    server = None
    if part.load is not None:
        server = ServerPlan(
            num_replicas=len(chosen) // size,
            tensor_parallel_size=size,
            gpu_memory_utilization=workload.config.engine.gpu_memory_utilization or MAX_FRACTION,
            load=part.load,
            num_texts=None,
        )
    return RolePlan(role=part.role, gpus=chosen, memory=None, server=server)


def role_plan(
    part: Part, kv_bytes: int, chosen: tuple[int, ...], *, size: int, gpu_bytes: int
) -> RolePlan:
    """Return where a role runs once it has its KV cache."""
    memory = replace(part.memory, kv_cache=kv_bytes)
    server = None
    if part.load is not None:
        server = ServerPlan(
            num_replicas=len(chosen) // size,
            tensor_parallel_size=size,
            gpu_memory_utilization=ceil(1000 * inside(memory) / gpu_bytes) / 1000,
            load=part.load,
            num_texts=kv_bytes // max(1, part.text_bytes),
        )
    return RolePlan(role=part.role, gpus=chosen, memory=memory, server=server)


def plan_notes(
    workload: Workload, roles: Sequence[RolePlan], gpus: Sequence[Gpu]
) -> tuple[str, ...]:
    """Return a line for each thing that is not known, bounded from above, or left unused."""
    notes: list[str] = []
    for item in roles:
        figures = workload.known_figures(item.role)
        own = (_UNKNOWN,) if figures is None else figures.notes
        told = [f"{item.role}, {workload.path(item.role)}: {note}" for note in own]
        # What holds of the student's weights holds of them in the trainer too.
        notes += [] if item.role == "student" and workload.alone is None else told
    used = {gpu for item in roles for gpu in item.gpus}
    if len(used) < len(gpus) and not gives_gpus(workload.config):
        left = len(gpus) - len(used)
        notes.append(
            f"{left} of {len(gpus)} GPUs {'is' if left == 1 else 'are'} not used: no server that "
            "fits there would shorten a step by more than 1 %"
        )
    return tuple(dict.fromkeys(notes))
