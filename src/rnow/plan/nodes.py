"""GPUs of several machines in one plan: each GPU knows its machine, 0 is this one.

A run takes whole machines, so a GPU has the same number in a plan and on its machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rnow.errors import ConfigError
from rnow.plan.devices import Devices, Gpu
from rnow.plan.make import device_variables
from rnow.plan.records import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine of a cluster, and what is on it."""

    id: str  # Ray's, of the node
    host: str
    address: str  # of the interface that Ray uses there, 10.0.0.5
    cores: int
    gpus: tuple[Gpu, ...]  # all of them, whatever Ray gave to whoever looked
    own: Mapping[str, str]  # packages of rnow's environment there, and their versions
    served: Mapping[str, str] | str  # those of engine.python, or why it cannot be asked

    @property
    def name(self) -> str:
        return f"{self.host} ({self.id[:8]})"


def cluster_devices(here: Devices, machines: Sequence[Machine]) -> Devices:
    """Return this machine's GPUs and those of the others, in the machines' order."""
    others = [machine.gpus for machine in machines[1:]]
    if not here.gpus and any(others):
        raise ConfigError(
            f"the trainer is on the machine of rnow run, which has no GPU ({here.reason}), and "
            "other machines of resources.cluster have: start the run on one of them"
        )
    gpus = [*here.gpus]
    for node, there in enumerate(others, 1):
        gpus += [replace(gpu, node=node) for gpu in there]
    return replace(here, gpus=tuple(gpus))


def check_trainer_is_here(plan: Plan) -> None:
    """Refuse a trainer of one GPU on another machine: it is in the process of the run itself."""
    trainer = plan.role("trainer")
    if trainer is not None and len(trainer.gpus) == 1 and plan.gpus[trainer.gpus[0]].node:
        raise ConfigError(
            f"the trainer would be on GPU {trainer.gpus[0]}, which is in another machine than the "
            "process of rnow run: start the run there, or set trainer.num_ranks to 2 or more"
        )


def server_place(
    gpus: Sequence[int], plan: Plan, machines: Sequence[Machine], *, environ: Mapping[str, str]
) -> dict[str, Any]:
    """Return the settings that put a server on these GPUs of the plan, all of one machine."""
    number = plan.gpus[gpus[0]].node
    there = [index for index, gpu in enumerate(plan.gpus) if gpu.node == number]
    devices = device_variables(
        [there.index(gpu) for gpu in gpus],
        [plan.gpus[index] for index in there],
        environ=environ if number == 0 else {},
    )
    return {"devices": devices, "node": machines[number].id if machines else None}


def deal_places(
    machines: Sequence[Machine], number: int, *, before: int = 0
) -> list[dict[str, Any]]:
    """Deal servers without GPUs to machines, `before` of them dealt already: in turn, the one
    with the trainer last.
    """
    if not machines:
        return [{}] * number
    others = [*machines[1:], machines[0]]
    return [{"node": others[(before + place) % len(others)].id} for place in range(number)]


def gpus_to_take(plan: Plan | None, machines: Sequence[Machine]) -> dict[str, int]:
    """Return how many GPUs are taken of each machine that is used: all that it has."""
    if plan is None:
        return {machine.id: 0 for machine in machines}
    used = {plan.gpus[index].node for role in plan.roles for index in role.gpus}
    return {
        machines[number].id: sum(gpu.node == number for gpu in plan.gpus) for number in sorted(used)
    }
