"""A controller for tests to kill: two servers on two machines of a cluster.

    python tests/cluster_controller.py ADDRESS FOLDER

Prints where the keepers keep their files once both servers serve, and waits.
"""

import asyncio
import json
import sys
from pathlib import Path

from served_lab import Lab

from rnow.cluster.connect import find_nodes, opened_cluster


async def main(address: str, folder: Path) -> None:
    ids = [node.id for node in await find_nodes(address)][1:]
    async with opened_cluster(address, want=dict.fromkeys(ids, 0)) as cluster:
        await Lab(folder).start(2, starter=cluster.start, nodes=ids)
        nodes = cluster.nodes.values()
        places = [await node.keeper.whereabouts.remote() for node in nodes]
        print(json.dumps([str(folder) for _, folder in places]), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
