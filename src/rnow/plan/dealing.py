"""GPUs that are left over once every role fits go where they shorten a step most.

A step is the longer of rolling out and scoring, then the update (pace.py). So a GPU for the engine
that is done first is a GPU in vain: where nothing is gained it is left unused, and that is said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from rnow.plan.device_table import device_or_other
from rnow.plan.devices import Gpu
from rnow.plan.pace import Gang, StepTokens, student_s, teacher_s, trainer_s
from rnow.plan.records import Role, RolePlan, StepTimes
from rnow.plan.workload import Workload

_LEAST_GAIN = 0.01  # of a step, which all further servers together do not save
_NUMBERS = {
    "student": "engine.replicas",
    "teacher": "teacher.replicas",
    "trainer": "trainer.num_ranks",
}


def find_gangs(
    workload: Workload, placed: Sequence[RolePlan], gpus: Sequence[Gpu]
) -> dict[Role, Gang]:
    """Return the roles' GPUs as estimates of time see them; a model without figures has none."""
    return {
        item.role: _gang(workload, item, gpus)
        for item in placed
        if workload.known_figures(item.role) is not None
    }


def step_times(
    gangs: Mapping[Role, Gang],
    tokens: StepTokens,
    *,
    tuning: Literal["lora", "full"],
    sharing: frozenset[Role],
) -> StepTimes:
    """Return how long the roles work in a step of these tokens."""
    seconds: dict[Role, float] = {}
    for role, gang in gangs.items():
        if role == "trainer":
            seconds[role] = trainer_s(gang, tokens, tuning=tuning)
        else:
            seconds[role] = (student_s if gang.samples else teacher_s)(gang, tokens)
    return StepTimes(seconds=seconds, sharing=sharing)


def sharing_engines(placed: Sequence[RolePlan]) -> frozenset[Role]:
    """Return the engines that have a GPU in common; none where none do."""
    engines = [item for item in placed if item.role != "trainer"]
    used = [gpu for item in engines for gpu in item.gpus]
    alone: frozenset[Role] = frozenset()
    return frozenset(item.role for item in engines) if len(set(used)) < len(used) else alone


def deal_spare(
    workload: Workload, placed: Sequence[RolePlan], gpus: Sequence[Gpu], *, num_free: int
) -> Workload | None:
    """Return `workload` with the servers and ranks that `num_free` more GPUs are worth; None: no
    more than there are.
    """
    first = {item.role: item.num_servers for item in placed if _can_grow(workload, placed, item)}
    sizes = {item.role: item.size for item in placed}
    gangs, shared = find_gangs(workload, placed, gpus), sharing_engines(placed)

    def times(counts: Mapping[Role, int]) -> StepTimes:
        wider = {
            role: replace(gang, num_servers=counts.get(role, gang.num_servers))
            for role, gang in gangs.items()
        }
        tuning = workload.trainer_load.tuning
        return step_times(wider, workload.step_tokens, tuning=tuning, sharing=shared)

    counts, stages = dict(first), [(times(first).step_s, dict(first))]
    while True:
        now = times(counts)
        gains: dict[Role, float] = {}
        for role in _worth_growing(workload, now, counts):
            if sizes[role] <= num_free:
                more = times(counts | {role: counts[role] + 1})
                gains[role] = (now.seconds[role] - more.seconds[role]) / sizes[role]
        if not gains:
            break
        best = max(gains, key=lambda role: gains[role])
        counts[best] += 1
        num_free -= sizes[best]
        stages.append((times(counts).step_s, dict(counts)))
    shortest = min(step_s for step_s, _ in stages)
    counts = next(had for step_s, had in stages if step_s <= (1 + _LEAST_GAIN) * shortest)
    if counts == first:
        return None
    return workload.with_settings({_NUMBERS[role]: count for role, count in counts.items()})


def _worth_growing(workload: Workload, now: StepTimes, counts: Mapping[Role, int]) -> list[Role]:
    """Return the engine that the other one waits for, and the trainer."""
    engines = [role for role in now.seconds if role != "trainer"]
    slower = max(engines, key=lambda role: now.seconds[role], default=None)
    wanted: list[Role] = [] if slower is None else [slower]
    # A rank without a trajectory would have nothing to do.
    most = min(workload.max_ranks, int(workload.step_tokens.rollouts))
    if "trainer" in now.seconds and counts.get("trainer", most) < most:
        wanted.append("trainer")
    return [role for role in wanted if role in counts]


def _cached_tokens(item: RolePlan) -> int | None:
    server = item.server
    if server is None or server.num_texts is None:
        return None
    return server.num_texts * server.load.max_model_len


def _can_grow(workload: Workload, placed: Sequence[RolePlan], item: RolePlan) -> bool:
    if any(set(other.gpus) & set(item.gpus) for other in placed if other is not item):
        return False
    if item.role == "trainer":
        return workload.max_ranks > item.num_servers
    return item.server is not None and workload.replicas(item.role) is None


def _gang(workload: Workload, item: RolePlan, gpus: Sequence[Gpu]) -> Gang:
    device, _ = device_or_other(gpus[item.gpus[0]].name)
    own = workload.trainer_load.dtype_bytes
    return Gang(
        figures=workload.figures(item.role),
        device=device,
        num_servers=item.num_servers,
        size=item.size,
        dtype_bytes=own if item.server is None else item.server.load.dtype_bytes,
        quantization=None if item.server is None else item.server.load.quantization,
        max_tokens=_cached_tokens(item),
        samples=item.role == "student" or workload.alone is not None,
        is_sharded=item.role == "trainer" and workload.trainer_load.num_parts > 1,
    )
