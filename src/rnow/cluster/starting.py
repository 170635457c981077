"""Who starts a run's servers: this process, or keepers on the machines of a cluster.

Nothing of Ray is imported where resources.cluster is not set.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rnow.cluster.machines import cluster_address
from rnow.engines.vllm.starting import Starter, start_here
from rnow.plan.engine_specs import Serving


@asynccontextmanager
async def server_starter(serving: Serving) -> AsyncIterator[Starter]:
    """Give what starts servers where the placement has put them."""
    address = cluster_address(serving.config)
    if address is None or not serving.placement.nodes:
        yield start_here
        return
    from rnow.cluster.connect import opened_cluster

    # A CPU's servers reserve nothing: how many a machine can have is for whoever asks for them.
    async with opened_cluster(address, want=dict.fromkeys(serving.placement.nodes, 0)) as cluster:
        yield cluster.start
