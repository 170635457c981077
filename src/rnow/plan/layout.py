"""Where the roles of a workload go on the GPUs found: the first layout that fits, or what is short.

A group is roles that share one GPU, or one role alone with one GPU or more:

    8 GPUs   [trainer] [student student student student] [teacher teacher teacher]
    2 GPUs   [trainer student] [teacher]
    1 GPU    [trainer student teacher]

Of a GPU shared by several, everyone gets what it cannot do without; of the rest the teacher's KV
cache is given a second sequence, and the student's as many as there are rollouts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from rnow.plan.dealing import deal_spare, find_gangs, sharing_engines, step_times
from rnow.plan.devices import Gpu
from rnow.plan.memory import GIB
from rnow.plan.parts import (
    MAX_FRACTION,
    Part,
    inside,
    make_part,
    plan_notes,
    role_plan,
    unknown_plan,
)
from rnow.plan.records import Plan, Role, RolePlan
from rnow.plan.workload import Workload, gives_gpus

Groups = tuple[tuple[Role, ...], ...]

# In the order in which they are tried.
_GROUPINGS: tuple[Groups, ...] = (
    (("trainer",), ("student",), ("teacher",)),
    (("trainer", "student"), ("teacher",)),
    (("trainer", "teacher"), ("student",)),
    (("trainer",), ("student", "teacher")),
    (("trainer", "student", "teacher"),),
)

_ROLES: tuple[Role, ...] = ("trainer", "student", "teacher")  # as they are shown

_HIDDEN = int(0.75 * GIB)  # of what nvidia-smi lists, CUDA does not give out
_SPARE = int(1.5 * GIB)  # left free on every GPU, for what an estimate from figures does not see


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """The layout that came nearest, and the memory it lacks where it lacks most."""

    num_bytes: float  # infinite: there are not GPUs enough for this layout
    gpus: tuple[int, ...]
    needs: tuple[tuple[Role, int], ...]  # bytes a GPU of each role there, with the least KV cache


class _Try(NamedTuple):
    """GPUs that a role might have: `number` servers, or ranks of a trainer, of `size` each."""

    size: int
    number: int


def find_plan(workload: Workload, gpus: Sequence[Gpu]) -> Plan | Shortage:
    """Return the first layout that fits, or the shortage of the one that lacks least.

    Every GPU's memory is known, and neither `resources` nor replicas ask for more GPUs than there
    are, so one layout at least can be tried.
    """
    nearest: Shortage | None = None
    for groups in _groupings(workload):
        for order in _orders(gpus):
            roles = _place(workload, groups, gpus=gpus, order=order)
            if isinstance(roles, tuple):
                return _plan_of(workload, roles, gpus)
            if nearest is None or roles.num_bytes < nearest.num_bytes:
                nearest = roles
    assert nearest is not None, "there is a GPU, and so a layout to try"
    return nearest


def _plan_of(workload: Workload, roles: tuple[RolePlan, ...], gpus: Sequence[Gpu]) -> Plan:
    gangs, tuning = find_gangs(workload, roles, gpus), workload.trainer_load.tuning
    shared = sharing_engines(roles)
    return Plan(
        roles=roles,
        gpus=tuple(gpus),
        max_context_window=workload.max_context_window,
        num_rollouts=workload.num_rollouts,
        gangs=gangs,
        times=step_times(gangs, workload.step_tokens, tuning=tuning, sharing=shared),
        notes=plan_notes(workload, roles, gpus),
    )


def _groupings(workload: Workload) -> list[Groups]:
    """Return the groupings to try: no role that runs elsewhere, local engines with the trainer."""
    here: list[Groups] = []
    for grouping in _GROUPINGS:
        groups = tuple(
            kept
            for group in grouping
            if (kept := tuple(role for role in group if workload.engine(role) != "url"))
        )
        local = {role for role in ("student", "teacher") if workload.engine(role) == "local"}
        if groups not in here and local <= set(groups[0]):
            here.append(groups)
    # GPUs that were asked for by role are not shared.
    return here if not gives_gpus(workload.config) else here[:1]


def _orders(gpus: Sequence[Gpu]) -> list[tuple[int, ...]]:
    """Return the orders in which GPUs are given out: as found, and by size where sizes differ."""
    found = tuple(range(len(gpus)))
    by_size = sorted(found, key=lambda index: gpus[index].memory_mib or 0)
    same = len({gpu.memory_mib for gpu in gpus}) == 1
    return [found] if same else [found, tuple(by_size), tuple(reversed(by_size))]


def _place(
    workload: Workload, groups: Groups, *, gpus: Sequence[Gpu], order: tuple[int, ...]
) -> tuple[RolePlan, ...] | Shortage:
    """Give out GPUs in `order`, group by group, what is left over to further servers."""
    placed: list[RolePlan] = []
    free = order
    for index, group in enumerate(groups):
        num_others = len(groups) - index - 1  # each needs one at least
        roles = _place_group(workload, group, gpus=gpus, free=free[: len(free) - num_others])
        if isinstance(roles, Shortage):
            return roles
        placed += roles
        free = tuple(index for index in free if index not in roles[0].gpus)
    wider = None
    if not gives_gpus(workload.config):
        wider = deal_spare(workload, placed, gpus, num_free=len(free))
    if wider is not None:
        # Placed anew, so that the GPUs of a role stand in a row.
        again = _place(wider, groups, gpus=gpus, order=order)
        if isinstance(again, tuple):
            return again
    return tuple(sorted(placed, key=lambda item: _ROLES.index(item.role)))


def _place_group(
    workload: Workload, group: tuple[Role, ...], *, gpus: Sequence[Gpu], free: tuple[int, ...]
) -> tuple[RolePlan, ...] | Shortage:
    """Place a group on as few of the first `free` GPUs as it fits on."""
    nearest = Shortage(num_bytes=inf, gpus=(), needs=())
    for tried in _tries(workload, group):
        chosen = _take(gpus, free, tried.size, tried.number)
        if chosen is None:
            continue
        smallest = min(_given_out(gpus[index]) for index in chosen)
        parts = [make_part(workload, role, gpu_bytes=smallest, size=tried.size) for role in group]
        left = smallest - _SPARE - sum(part.need for part in parts)
        missing = max(-left, *(part.num_missing for part in parts))
        if missing <= 0:
            return tuple(
                role_plan(part, kv_bytes, chosen, size=tried.size, gpu_bytes=smallest)
                if part.is_known
                else unknown_plan(workload, part, chosen, tried.size)
                for part, kv_bytes in _deal(workload, parts, left=left, gpu_bytes=smallest)
            )
        if missing < nearest.num_bytes:
            needs = tuple((part.role, part.need) for part in parts)
            nearest = Shortage(num_bytes=missing, gpus=chosen, needs=needs)
    return nearest


def _tries(workload: Workload, group: tuple[Role, ...]) -> Iterator[_Try]:
    """Yield what to try for a group, the fewest GPUs first."""
    role = group[0]
    if len(group) > 1 or workload.engine(role) == "local":
        num_ranks = workload.num_ranks if role == "trainer" and workload.alone is None else 1
        # A server that shared one of several GPUs would be on all of them.
        is_served = any(workload.engine(item) == "vllm" for item in group)
        if num_ranks > 1 and is_served:
            return
        if all(workload.replicas(item) in (None, 1) for item in group):
            yield _Try(1, num_ranks)
        return
    replicas = workload.replicas(role)
    num_gpus = workload.num_gpus(role)
    figures = workload.known_figures(role)
    # Of what nothing is known, one server has all GPUs that it may.
    sizes = (8, 4, 2, 1) if figures is None else figures.tensor_parallel_sizes()
    for size in sizes:
        if num_gpus is None:
            yield _Try(size, replicas or 1)
        elif num_gpus % size == 0:
            count = num_gpus // size
            if replicas in (None, count):
                yield _Try(size, count)


def _take(
    gpus: Sequence[Gpu], free: tuple[int, ...], size: int, count: int
) -> tuple[int, ...] | None:
    """Return GPUs for `count` servers of `size` each, none of them over two machines."""
    taken: list[int] = []
    for node in dict.fromkeys(gpus[index].node for index in free):
        there = [index for index in free if gpus[index].node == node]
        room = min(len(there) // size, count - len(taken) // size)
        taken += there[: room * size]
    return tuple(taken) if len(taken) == size * count else None


def _deal(
    workload: Workload, parts: Sequence[Part], *, left: int, gpu_bytes: int
) -> Iterator[tuple[Part, int]]:
    """Yield each part with its KV cache; `left` is what remains once all have the least."""
    wanted: dict[Role, float] = {
        "trainer": 0,
        "teacher": 1,
        "student": workload.num_rollouts - 1,
    }
    # The teacher first: one sequence more, and it works while the next one is read in.
    for part in sorted(parts, key=lambda part: part.role != "teacher"):
        if (
            part.load is None
            or not part.is_known
            or workload.config.engine.gpu_memory_utilization is not None
        ):
            more = 0
        elif len(parts) == 1:
            most = int(MAX_FRACTION * gpu_bytes) - inside(part.memory) - part.min_kv
            more = max(0, min(left, most))
        else:
            more = int(min(left, wanted[part.role] * part.min_kv))
        left -= more
        yield part, part.min_kv + more


def _given_out(gpu: Gpu) -> int:
    """Return the bytes that CUDA calls all of this GPU's memory."""
    assert gpu.memory_mib is not None, "make_plan refuses GPUs of unknown size"
    return (gpu.memory_mib << 20) - _HIDDEN
