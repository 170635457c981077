"""GPUs of several machines: which are planned together, and how a server is shown its own."""

from dataclasses import replace

import pytest

from rnow.errors import ConfigError
from rnow.plan.devices import Devices, Gpu
from rnow.plan.memory import RoleMemory
from rnow.plan.nodes import (
    Machine,
    check_trainer_is_here,
    cluster_devices,
    deal_places,
    gpus_to_take,
    server_place,
)
from rnow.plan.records import Plan, RolePlan, StepTimes

H100 = Gpu(kind="cuda", name="NVIDIA H100", memory_mib=81559)
HERE = Devices(gpus=(H100, H100), reason="")


def machine(id: str, *gpus: Gpu) -> Machine:
    return Machine(id=id, host=f"host-{id}", address="", cores=1, gpus=gpus, own={}, served={})


MACHINES = (machine("a", H100, H100), machine("b", H100), machine("c", H100, H100))


def plan(trainer: tuple[int, ...], teacher: tuple[int, ...]) -> Plan:
    none = RoleMemory(weights=0, overhead=0)
    roles = (
        RolePlan(role="trainer", gpus=trainer, memory=none, server=None),
        RolePlan(role="teacher", gpus=teacher, memory=none, server=None),
    )
    gpus = cluster_devices(HERE, MACHINES).gpus
    return Plan(
        roles=roles,
        gpus=gpus,
        max_context_window=1,
        num_rollouts=1,
        gangs={},
        times=StepTimes(seconds={}),
    )


def test_gpus_know_their_machine() -> None:
    found = cluster_devices(HERE, MACHINES)
    assert [gpu.node for gpu in found.gpus] == [0, 0, 1, 2, 2]
    assert found.gpus[2] == replace(H100, node=1)


def test_a_trainer_without_a_gpu_of_its_machine_is_refused() -> None:
    none_here = Devices(gpus=(), reason="no nvidia-smi")
    with pytest.raises(ConfigError, match=r"no GPU \(no nvidia-smi\).*start the run on one"):
        cluster_devices(none_here, MACHINES)
    assert cluster_devices(none_here, (machine("a"), machine("b"))).gpus == ()


def test_a_trainer_of_one_gpu_is_on_the_machine_of_the_run() -> None:
    check_trainer_is_here(plan((1,), (2,)))
    check_trainer_is_here(plan((0, 1, 2), (3,)))
    with pytest.raises(ConfigError, match=r"on GPU 2, which is in another machine.*num_ranks"):
        check_trainer_is_here(plan((2,), (3,)))


def test_a_server_sees_its_gpus_by_the_numbers_of_its_machine() -> None:
    made = plan((0,), (3, 4))
    environ = {"CUDA_VISIBLE_DEVICES": "5,7"}
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert server_place((3, 4), made, MACHINES, environ=environ) == {
        "devices": {**order, "CUDA_VISIBLE_DEVICES": "0,1"},
        "node": "c",
    }
    assert server_place((1,), made, MACHINES, environ=environ) == {
        "devices": {**order, "CUDA_VISIBLE_DEVICES": "7"},
        "node": "a",
    }
    assert server_place((1,), made, (), environ=environ)["node"] is None


def test_of_a_machine_that_is_used_all_gpus_are_taken() -> None:
    assert gpus_to_take(plan((0,), (4,)), MACHINES) == {"a": 2, "c": 2}
    assert gpus_to_take(None, MACHINES) == {"a": 0, "b": 0, "c": 0}


def test_servers_without_gpus_are_dealt_in_turn_this_machine_last() -> None:
    def ids(number: int, before: int) -> list[str]:
        return [place["node"] for place in deal_places(MACHINES, number, before=before)]

    assert ids(4, 0) == ["b", "c", "a", "b"]
    assert ids(2, 4) == ["c", "a"]
    assert deal_places((), 2) == [{}, {}]
