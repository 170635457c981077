"""Servers on the machines of a real Ray cluster, whose nodes are raylets of this machine."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import ray
from processes import until
from ray.cluster_utils import Cluster as RayCluster
from served_lab import Lab
from short_runs import ForkedCli

from rnow.cluster.connect import Cluster, find_nodes, opened_cluster
from rnow.cluster.node import Node
from rnow.commands.init import init_project
from rnow.engines.base import SampleRequest, ScoreRequest
from rnow.errors import ClusterError, EngineError

pytestmark = pytest.mark.slow

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
IDS = (9, 5)


def write_python(folder: Path, version: str) -> Path:
    """Write into `folder` an interpreter of that name which has this vLLM."""
    folder.mkdir()
    program = folder / "serving-python"
    program.write_text(f'#!/bin/sh\necho \'{{"python": "3.12.1", "vllm": "{version}"}}\'\n')
    program.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A head and two more nodes; a test that ends one adds another."""
    folder = write_python(tmp_path_factory.mktemp("machines") / "bin", "0.33.1")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield from started_machines()


def started_machines() -> Iterator[RayCluster]:
    cluster = RayCluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    cluster.add_node(**NODE)
    cluster.add_node(**NODE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
async def cluster(machines: RayCluster) -> AsyncIterator[Cluster]:
    found = await find_nodes(machines.address, python=None)
    async with opened_cluster(found, want={machine.id: 0 for machine in found}) as opened:
        yield opened


@pytest.fixture
async def lab(tmp_path: Path, cluster: Cluster) -> AsyncIterator[Lab]:
    made = Lab(tmp_path / "servers")
    yield made
    for engine in made.engines:
        await engine.aclose()
    assert made.pids() == []


async def test_servers_on_two_machines_sample_and_score(lab: Lab, cluster: Cluster) -> None:
    engine = await lab.start(2, starter=cluster.start, nodes=[*cluster.nodes][1:])
    answers = await asyncio.gather(*(engine.sample(request(f"0.0.{n}")) for n in range(4)))
    assert {tuple(answer.token_ids) for answer in answers} == {tuple(answers[0].token_ids)}
    first, second = await engine.probe(ScoreRequest(token_ids=IDS, start=1))
    assert first.logprobs.tolist() == second.logprobs.tolist()


async def test_an_adapter_lies_on_each_machine_as_long_as_it_is_loaded(
    lab: Lab, cluster: Cluster, tmp_path: Path
) -> None:
    engine = await lab.start(2, starter=cluster.start, nodes=[*cluster.nodes][1:])
    folder = tmp_path / "policies" / "1"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"0123456789" * 1000)
    (folder / "empty").touch()
    await engine.load_policy(folder, 1)
    copies = [Path(line) for line in (lab.folder / "adapters").read_text().splitlines()]
    assert len(copies) == 2
    assert folder not in copies
    for copy in copies:
        assert {file.name: file.read_bytes() for file in copy.iterdir()} == {
            file.name: file.read_bytes() for file in folder.iterdir()
        }
    await engine.sample(request("0.0.0", version=1))
    await engine.release("0.0.0")
    await engine.unload_policy(1)
    await until(lambda: not any(copy.exists() for copy in copies))


async def test_a_server_that_is_killed_starts_again_on_its_machine(
    lab: Lab, cluster: Cluster
) -> None:
    engine = await lab.start(1, starter=cluster.start, nodes=[*cluster.nodes][1:])
    whole = await engine.sample(request("0.0.0"))
    again = await lab.killed(engine.sample(request("0.0.1")))
    assert again.token_ids.tolist() == whole.token_ids.tolist()
    place = f"{lab.folder}/student-0.log (of {engine_node(cluster, 1).name})"
    assert [line.splitlines()[0] for line in lab.said] == [
        f"the vLLM server of the student has ended (killed by SIGKILL); {place} ends with:",
        "the vLLM server of the student serves again",
    ]


async def test_a_machine_that_dies_is_left_out_and_a_spare_takes_its_servers(
    lab: Lab, cluster: Cluster, machines: RayCluster
) -> None:
    second = [*cluster.nodes][1]
    engine = await lab.start(1, starter=cluster.start, nodes=[second])
    whole = await engine.sample(request("0.0.0"))
    raylet = next(node for node in machines.worker_nodes if node.node_id == second)
    machines.remove_node(raylet, allow_graceful=False)
    try:
        name = cluster.nodes[second].name
        await until(lambda: len(lab.said) == 2)
        assert lab.said[0].startswith(f"the machine {name} does not answer any more")
        again = await engine.sample(request("0.0.1"))
        assert again.token_ids.tolist() == whole.token_ids.tolist()
        assert len(lab.pids()) == 1
    finally:
        machines.add_node(**NODE)


async def test_a_keeper_that_is_killed_takes_its_servers_with_it(
    lab: Lab, cluster: Cluster
) -> None:
    second = [*cluster.nodes.values()][1]
    engine = await lab.start(1, starter=cluster.start, nodes=[second.machine.id])
    keeper, folder = await second.keeper.whereabouts.remote()
    (former,) = lab.pids()
    os.kill(keeper, signal.SIGKILL)
    await until(lambda: len(lab.said) == 2)
    assert former not in lab.pids()
    assert len(lab.pids()) == 1
    await until(lambda: not folder.exists())
    await engine.sample(request("0.0.1"))
    assert await cluster.node_for(second.machine.id) is not second  # its machine has a new one
    assert [*cluster.nodes] == [node.machine.id for node in cluster.nodes.values()]


async def test_nothing_is_left_on_any_machine_when_the_controller_is_killed(
    machines: RayCluster, tmp_path: Path
) -> None:
    lab = Lab(tmp_path / "servers")
    script = Path(__file__).parents[1] / "cluster_controller.py"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), machines.address, str(lab.folder)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    folders = json.loads(await process.stdout.readline())
    assert len(lab.pids()) == 2
    assert [Path(folder).is_dir() for folder in folders] == [True, True]
    process.kill()
    await process.wait()
    await until(lambda: lab.pids() == [])
    await until(lambda: not any(Path(folder).exists() for folder in folders))


async def test_gpus_that_another_run_has_are_asked_for_in_vain_with_words(
    machines: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")  # Ray would count those
    added = machines.add_node(**NODE, num_gpus=2)
    taken = added.node_id
    try:
        found = await find_nodes(machines.address, python=None)
        async with opened_cluster(found, want={taken: 2}):
            with pytest.raises(ClusterError, match="Ray does not give the GPUs that are asked for"):
                async with opened_cluster(found, want={taken: 2}, limit_s=2):
                    pass
        async with opened_cluster(found, want={taken: 2}) as cluster:
            assert [*cluster.nodes] == [taken]
            former, _ = await cluster.nodes[taken].keeper.whereabouts.remote()
            os.kill(former, signal.SIGKILL)
            node = cluster.nodes[taken]
            with pytest.raises(EngineError, match="does not answer any more"):
                await node.ask(node.keeper.last_line.remote("x"), "cluster.last_line", limit_s=60)
            again = await cluster.node_for(taken)  # another keeper with the same two GPUs
            assert again.machine.id == taken
            assert (await again.keeper.whereabouts.remote())[0] != former
    finally:
        machines.remove_node(added)


async def test_machines_whose_versions_differ_are_named(
    machines: RayCluster, tmp_path: Path
) -> None:
    other = write_python(tmp_path / "bin", "0.32.0")
    assert len(await find_nodes(machines.address, python="serving-python")) == 3
    first = (await find_nodes(machines.address, python="serving-python"))[0].name
    added = [
        machines.add_node(**NODE, env_vars={"PATH": f"{other}:/usr/bin:/bin"}),
        machines.add_node(**NODE, env_vars={"PATH": "/usr/bin:/bin"}),
    ]
    try:
        with pytest.raises(ClusterError) as refused:
            await find_nodes(machines.address, python="serving-python")
    finally:
        for node in added:
            machines.remove_node(node)
    old, none = (f"{socket.gethostname()} ({node.node_id[:8]})" for node in added)
    assert sorted(str(refused.value).splitlines()[1:-1]) == sorted(
        (
            f"  {old}: engine.python (serving-python) has vllm 0.32.0, on {first} 0.33.1",
            f"  {none}: engine.python (serving-python) cannot be run there: [Errno 2] No such file "
            "or directory: 'serving-python'",
        )
    )
    assert len(await find_nodes(machines.address, python=None)) == 3


def engine_node(cluster: Cluster, place: int) -> Node:
    return [*cluster.nodes.values()][place]


def request(session: str, *, version: int = 0) -> SampleRequest:
    return SampleRequest(
        token_ids=IDS,
        session=session,
        max_tokens=3,
        stop_token_ids=(),
        seed=7,
        policy_version=version,
    )


def test_an_evaluation_has_its_server_on_another_machine(
    machines: RayCluster, rnow: ForkedCli, tmp_path: Path
) -> None:
    project, lab = tmp_path / "clinic", Lab(tmp_path / "servers")
    init_project(project, template="clinic")
    adapter = project / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    done = rnow(
        *("eval", project, "--model", "adapter", "--max-samples", "1", "engine.kind=vllm"),
        *(f"engine.python={lab.python}", f"resources.cluster={machines.address}"),
        "rollout.max_turns=1",
    )
    assert "a vLLM server on the CPU of one of the cluster's 3 machines" in done.output
    assert done.status == 0, done.output
    (copy,) = (lab.folder / "adapters").read_text().splitlines()
    assert not copy.startswith(str(project))
    assert lab.pids() == []
