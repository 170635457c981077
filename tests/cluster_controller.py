"""A controller for tests to kill: two servers on two machines of a cluster.

    python tests/cluster_controller.py ADDRESS FOLDER

ADDRESS new:IP : a cluster of three nodes, made here first.
Prints where the keepers keep their files once both servers serve, and waits.
"""

import asyncio
import json
import sys
from pathlib import Path

from ray.cluster_utils import Cluster as RayCluster
from served_lab import Lab

from rnow.cluster.connect import find_nodes, opened_cluster

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


async def main(address: str, folder: Path) -> None:
    if address.startswith("new:"):
        node = {**NODE, "node_ip_address": address.removeprefix("new:")}
        cluster = RayCluster(initialize_head=True, head_node_args=node)
        address = cluster.address
        for _ in range(2):
            cluster.add_node(**node)
    found = await find_nodes(address, python=None)
    ids = [machine.id for machine in found][1:3]  # not what others added to it
    async with opened_cluster(found, want=dict.fromkeys(ids, 0)) as opened:
        await Lab(folder).start(2, starter=opened.start, nodes=ids)
        nodes = opened.nodes.values()
        places = [await node.keeper.whereabouts.remote() for node in nodes]
        print(json.dumps([str(folder) for _, folder in places]), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
