"""Who starts a run's servers and ranks: this process, or keepers on the machines of a cluster.

Nothing of Ray is imported where resources.cluster is not set.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from rnow.engines.vllm.starting import Starter, start_here
from rnow.plan.engine_specs import Serving
from rnow.plan.nodes import gpus_to_take

if TYPE_CHECKING:
    from rnow.cluster.connect import Cluster


@asynccontextmanager
async def opened_cluster_of(serving: Serving | None) -> AsyncIterator["Cluster | None"]:
    """Take the machines that the placement uses; None where it is this one alone."""
    machines = () if serving is None else serving.placement.machines
    if serving is None or not machines:
        yield None
        return
    from rnow.cluster.connect import opened_cluster

    want = gpus_to_take(serving.placement.plan, machines)
    async with opened_cluster(machines, want=want) as cluster:
        yield cluster


def starter_of(cluster: "Cluster | None") -> Starter:
    """Return what starts servers where the placement has put them."""
    return start_here if cluster is None else cluster.start
