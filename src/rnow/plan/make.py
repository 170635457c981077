"""Which GPU does what, and how full it gets: settled before anything is loaded.

    figures of both models ─┐
    settings (Workload) ────┼─▶ make_plan ─▶ Plan: lines() for the terminal, numbers for servers
    GPUs found ─────────────┘         └─▶ ConfigError that says which number to change

The roles are separate processes: the trainer is the controller itself, on one GPU, or one process
a GPU where it has several; each engine is
one or more vLLM servers of one or more GPUs. They get GPUs of their own where there are enough, and
share one where there are not, each with a fixed part of its memory: nothing sleeps, nothing is
moved away and back. A local engine lives in the controller, so on the trainer's GPU. A role with
`url` runs elsewhere and takes nothing here.

How GPUs are given out is layout.py's, what a role takes is memory.py's, and which change would
help is found by planning again with it (advice.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rnow.errors import ConfigError, ModelError
from rnow.plan.advice import advise
from rnow.plan.devices import Devices, Gpu
from rnow.plan.layout import Shortage, find_plan
from rnow.plan.memory import GIB
from rnow.plan.records import Plan, Role, seconds_text
from rnow.plan.workload import Workload, gives_gpus

_WORTHWHILE = 0.9  # of a step's time: from there on more ranks are advised


def make_plan(workload: Workload, devices: Devices) -> Plan:
    """Return a plan that this version can run.

    Raises ConfigError where a setting rules every plan out or nothing fits, with what to change,
    and ModelError where there is no GPU, or one of unknown size.
    """
    if not devices.gpus:
        raise ModelError(f"there is no GPU to plan for ({devices.reason})")
    unknown = [gpu.name for gpu in devices.gpus if gpu.memory_mib is None]
    if unknown:
        raise ModelError(
            f"nothing says how much memory {unknown[0]} has, so nothing can be planned for it; "
            "nvidia-smi is asked for it"
        )
    _check_resources(workload, num_gpus=len(devices.gpus))
    found = find_plan(workload, devices.gpus)
    if isinstance(found, Plan):
        return replace(found, notes=(*found.notes, *_rank_advice(workload, found)))
    raise ConfigError(_shortage_message(workload, devices.gpus, found))


def _rank_advice(workload: Workload, found: Plan) -> tuple[str, ...]:
    """Say what more ranks would bring where the trainer works longest; () where that is little."""
    num_gpus = len(found.gpus)
    settled = gives_gpus(workload.config) or workload.num_ranks > 1
    if settled or workload.unknown or workload.alone is not None:
        return ()
    other = find_plan(replace(workload, max_ranks=num_gpus), found.gpus)
    trainer = other.role("trainer") if isinstance(other, Plan) else None
    if not isinstance(other, Plan) or trainer is None:
        return ()
    if other.times.step_s > _WORTHWHILE * found.times.step_s:
        return ()
    return (
        f"with trainer.num_ranks: {trainer.num_servers} a step would take "
        f"{seconds_text(other.times.step_s)} in the place of {seconds_text(found.times.step_s)}",
    )


def device_variables(
    gpus: Sequence[int], devices: Sequence[Gpu], *, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return the environment variables that show a process the GPUs of a plan and no others.

    A plan counts the GPUs that this process may use, as CUDA does; a child that is given other
    variables would count anew. CUDA's own order is by speed, nvidia-smi's by slot: the latter for
    both.

    >>> device_variables([1], plan.gpus, environ={"CUDA_VISIBLE_DEVICES": "3,5"})
    {'CUDA_DEVICE_ORDER': 'PCI_BUS_ID', 'CUDA_VISIBLE_DEVICES': '5'}
    """
    if devices[gpus[0]].kind == "rocm":
        names = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
        name = next((name for name in names if name in environ), names[0])
        order = {}
    else:
        name, order = "CUDA_VISIBLE_DEVICES", {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    visible = [entry.strip() for entry in environ[name].split(",")] if name in environ else None
    chosen = (str(gpu) if visible is None else visible[gpu] for gpu in gpus)
    return {**order, name: ",".join(chosen)}


def _check_resources(workload: Workload, *, num_gpus: int) -> None:
    roles: tuple[Role, ...] = ("trainer", "student", "teacher")
    given = {role: workload.num_gpus(role) for role in roles if _takes_gpus(workload, role)}
    asked = {role: count for role, count in given.items() if count is not None}
    if not asked:
        _check_replicas(workload, num_gpus=num_gpus)
        _check_ranks(workload, num_gpus=num_gpus)
    if sum(asked.values()) > num_gpus:
        counts = ", ".join(f"{role} {count}" for role, count in asked.items())
        raise ConfigError(
            f"resources asks for {sum(asked.values())} GPUs ({counts}), and this machine has "
            f"{num_gpus}; without resources the roles share what there is"
        )
    for role, count in asked.items():
        replicas = workload.replicas(role)
        if role != "trainer" and replicas is not None and count % replicas:
            raise ConfigError(
                f"resources.{role}.gpus is {count}, which is no multiple of "
                f"{replicas} replicas; set one of them so that each gets as many GPUs"
            )


def _check_replicas(workload: Workload, *, num_gpus: int) -> None:
    """Refuse servers for which there are not GPUs enough, even if each needs no more than one."""
    roles: tuple[Role, ...] = ("student", "teacher")
    several = {role: count for role in roles if (count := workload.replicas(role) or 1) > 1}
    num_trainers = 1 if workload.alone is None else 0
    if sum(several.values()) + num_trainers > num_gpus:
        asked = ", ".join(f"{role} {count}" for role, count in several.items())
        trainer = " and the trainer" if num_trainers else ""
        raise ConfigError(
            f"the servers that are asked for ({asked}){trainer} need a GPU each, and this "
            f"machine has {num_gpus}; ask for fewer replicas"
        )


def _check_ranks(workload: Workload, *, num_gpus: int) -> None:
    """Refuse ranks for which there are not GPUs enough: a rank shares its own with no server."""
    if workload.num_ranks == 1 or workload.alone is not None:
        return
    roles: tuple[Role, ...] = ("student", "teacher")
    counts = [workload.replicas(role) or 1 for role in roles if workload.engine(role) == "vllm"]
    num_served = sum(counts) if max(counts, default=1) > 1 else min(1, len(counts))
    if workload.num_ranks + num_served > num_gpus:
        beside = f", and servers need {num_served} more" if num_served else ""
        raise ConfigError(
            f"trainer.num_ranks is {workload.num_ranks}, a GPU each{beside}; this machine has "
            f"{num_gpus}: lower it"
        )


def _takes_gpus(workload: Workload, role: Role) -> bool:
    """Whether `role` has GPUs of its own; a local engine is on the trainer's."""
    kind = workload.engine(role)
    return kind == "vllm" or (kind == "local" and role in ("trainer", workload.alone))


def _shortage_message(workload: Workload, gpus: Sequence[Gpu], shortage: Shortage) -> str:
    models = f"{workload.path('student')} and its teacher {workload.path('teacher')} do"
    if workload.alone is not None or workload.teacher_engine == "url":
        models = f"{workload.path(workload.alone or 'student')} does"
    where = f"GPU {', '.join(map(str, shortage.gpus))}"
    needed = sum(num_bytes for _, num_bytes in shortage.needs) / GIB
    needs = ", ".join(f"{role} {num_bytes / GIB:.1f}" for role, num_bytes in shortage.needs)
    lines = [
        f"{models} not fit on {_count(gpus)}: {where} can give "
        f"{needed - shortage.num_bytes / GIB:.1f} GiB, and needed are {needed:.1f} ({needs})"
    ]
    changes = advise(workload, gpus)
    if changes:
        lines += ["Any one of these makes it fit:", *(f"  {change}" for change in changes)]
    else:
        lines.append("No setting makes it fit; take smaller models")
    return "\n".join(lines)


def _count(gpus: Sequence[Gpu]) -> str:
    return "1 GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs"
