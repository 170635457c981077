"""Who starts a run's servers: this process, or keepers on the machines of a cluster.

Nothing of Ray is imported where resources.cluster is not set.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rnow.engines.vllm.starting import Starter, start_here
from rnow.plan.engine_specs import Serving
from rnow.plan.nodes import gpus_to_take


@asynccontextmanager
async def server_starter(serving: Serving) -> AsyncIterator[Starter]:
    """Give what starts servers where the placement has put them."""
    machines = serving.placement.machines
    if not machines:
        yield start_here
        return
    from rnow.cluster.connect import opened_cluster

    want = gpus_to_take(serving.placement.plan, machines)
    async with opened_cluster(machines, want=want) as cluster:
        yield cluster.start
