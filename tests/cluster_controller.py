"""A controller for tests to kill: two servers on two machines of a cluster, and ranks if wanted.

    python tests/cluster_controller.py ADDRESS FOLDER [0 1]

ADDRESS new:IP : a cluster of three nodes, made here first. Numbers: of the node of each rank of a
trainer. Prints where the keepers keep their files once both servers serve, and waits.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.cluster_utils import Cluster as RayCluster
from served_lab import Lab

from rnow.cluster.connect import Cluster, find_nodes, opened_cluster

if TYPE_CHECKING:
    from rnow.training.ranks.student import RankedStudent

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


async def main(address: str, folder: Path, ranks: Sequence[int]) -> None:
    if address.startswith("new:"):
        node = {**NODE, "node_ip_address": address.removeprefix("new:")}
        cluster = RayCluster(initialize_head=True, head_node_args=node)
        address = cluster.address
        for _ in range(2):
            cluster.add_node(**node)
    found = await find_nodes(address, python=None)
    ids = [machine.id for machine in found][1:3]  # not what others added to it
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(opened_cluster(found, want=dict.fromkeys(ids, 0)))
        if ranks:
            student = await open_ranks(opened, folder, [ids[number] for number in ranks])
            await stack.enter_async_context(aclosing(student))
        await Lab(folder).start(2, starter=opened.start, nodes=ids)
        nodes = opened.nodes.values()
        places = [await node.keeper.whereabouts.remote() for node in nodes]
        print(json.dumps([str(folder) for _, folder in places]), flush=True)
        await asyncio.Event().wait()


async def open_ranks(cluster: Cluster, folder: Path, nodes: Sequence[str]) -> "RankedStudent":
    import rank_cases
    from builders import qwen3
    from rank_runs import settings_of

    from rnow.cluster.ranks import RanksOnNodes
    from rnow.training.ranks.places import PROGRAM
    from rnow.training.ranks.student import RankedStudent

    model = folder / "student"
    qwen3(seed=0, vocab_size=rank_cases.VOCAB).save_pretrained(model)
    settings = settings_of(folder / "trainer", model)
    run = settings.run
    place = RanksOnNodes(
        cluster, nodes, program=PROGRAM, student=model, run=run.path, logs=run.logs
    )
    return await RankedStudent.open(replace(settings, place=place), say=print)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), [*map(int, sys.argv[3:])]))
