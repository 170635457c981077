"""Ranks of a trainer on the machines of a real Ray cluster, whose nodes are raylets of this one."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import rank_cases
import ray
from builders import qwen3
from processes import is_alive, wait_until
from rank_runs import Killer, settings_of, steps, train
from ray.cluster_utils import Cluster as RayCluster
from short_runs import ForkedCli, assert_same_run

from rnow.cluster.connect import Cluster, find_nodes, opened_cluster
from rnow.cluster.ranks import RanksOnNodes
from rnow.commands.init import init_project
from rnow.training.ranks.places import PROGRAM
from rnow.training.ranks.processes import RankSettings
from rnow.training.ranks.student import RankedStudent

pytestmark = pytest.mark.slow

# Two steps of four rollouts, evaluated before, between and after.
SHORT = (
    "data.batch_size=2",
    "data.group_size=2",
    "trainer.max_steps=2",
    "trainer.num_ranks=2",
    "trainer.eval_step=1",
)
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def machines() -> Iterator[RayCluster]:
    cluster = RayCluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    cluster.add_node(**NODE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    qwen3(seed=0, vocab_size=rank_cases.VOCAB).save_pretrained(folder)
    return folder


def on_nodes(settings: RankSettings, cluster: Cluster) -> RankSettings:
    """The same ranks, each on a machine of its own that is not this one."""
    place = RanksOnNodes(
        cluster,
        [*cluster.nodes][1:],
        program=PROGRAM,
        student=settings.student,
        run=settings.run.path,
        logs=settings.run.logs,
    )
    return replace(settings, place=place)


def ranks_in(folder: Path) -> list[int]:
    """Return the ranks that a keeper has started, by where they work, without their guardians."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_guardian = (process / "cmdline").read_bytes().startswith(b"/bin/sh")
            if Path(os.readlink(process / "cwd")) == folder / "made" and not is_guardian:
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("tuning", ["lora", "full"])
async def test_ranks_on_two_machines_compute_the_bits_of_ranks_on_this_one(
    machines: RayCluster, model: Path, tmp_path: Path, tuning: str
) -> None:
    said: list[str] = []
    expected = await train(settings_of(tmp_path / "here", model, tuning=tuning), said.append)
    killer = Killer(["rank1/update/micro_batch:2"])
    settings = settings_of(tmp_path / "there", model, tuning=tuning, environment=killer.environment)
    found = await find_nodes(machines.address, python=None)
    async with opened_cluster(found, want={one.id: 0 for one in found}) as cluster:
        assert await train(on_nodes(settings, cluster), killer.say) == expected
        keepers = [await node.keeper.whereabouts.remote() for node in cluster.nodes.values()]
        assert [sorted(path.name for path in folder.iterdir()) for _, folder in keepers] == [
            [],
            ["made", "rank-0.log"],
            ["made", "rank-1.log"],
        ]
        assert [[*(folder / "made").iterdir()] for _, folder in keepers[1:]] == [[], []]
        third = [*cluster.nodes.values()][2]
    assert said == []
    assert [line.splitlines()[0] for line in killer.said] == [
        f"rank 1 of the trainer's 2 on {third.name} has ended (killed by SIGKILL) at micro-batch "
        f"2 of 2; {settings.run.logs}/rank-1.log ends with:"
    ]


def test_the_demo_trains_on_two_machines_to_the_bits_of_one(
    machines: RayCluster, rnow: ForkedCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else those of one machine share its cores
    project = tmp_path / "clinic"
    init_project(project, template="clinic")
    held_out = project / "val.jsonl"
    held_out.write_text("".join(held_out.read_text().splitlines(keepends=True)[:4]))
    for name, place in (("here", ()), ("there", (f"resources.cluster={machines.address}",))):
        done = rnow("run", project, "--name", name, *SHORT, *place)
        assert done.status == 0, done.output
    here, there = project / "runs" / "here", project / "runs" / "there"
    assert_same_run(here, there, num_steps=2)
    kept = [*(here / "trajectories").iterdir(), *(here / "policies").rglob("*")]
    for file in kept:
        assert (there / file.relative_to(here)).exists(), file
    assert [path for path in there.rglob("*") if ".brought" in str(path)] == []


async def test_a_keeper_that_dies_in_an_update_is_named_and_costs_no_bit(
    machines: RayCluster, model: Path, tmp_path: Path
) -> None:
    expected = await train(settings_of(tmp_path / "here", model), pytest.fail)
    said: list[str] = []
    settings = settings_of(tmp_path / "there", model)
    found = await find_nodes(machines.address, python=None)
    async with opened_cluster(found, want={one.id: 0 for one in found}) as cluster:
        third = [*cluster.nodes.values()][2]
        keeper, folder = await third.keeper.whereabouts.remote()
        student = await RankedStudent.open(on_nodes(settings, cluster), say=said.append)
        (pid,) = ranks_in(folder)
        os.kill(pid, signal.SIGSTOP)  # so that the other one has to wait for it

        def kill_in_update() -> None:
            processes = student._processes
            assert processes is not None
            wait_until(lambda: processes._phases[0] == "exchange")
            os.kill(keeper, signal.SIGKILL)

        async with aclosing(student):
            killing = asyncio.create_task(asyncio.to_thread(kill_in_update))
            assert await asyncio.to_thread(steps, student, settings.run) == expected
            await killing
        wait_until(lambda: not is_alive(pid))
        wait_until(lambda: not folder.exists())
        assert (await cluster.node_for(third.machine.id)).machine is third.machine
    assert len(said) == 1
    assert said[0].startswith(
        f"rank 1 of the trainer's 2 on {third.name} is gone: the machine {third.name} does not "
        "answer any more ("
    )
