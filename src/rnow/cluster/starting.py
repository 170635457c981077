"""Who starts a run's servers: this process, or keepers on the machines of a cluster.

Nothing of Ray is imported where resources.cluster is not set.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rnow.config.settings import Config
from rnow.engines.vllm.served import Starter, start_here
from rnow.errors import ClusterError
from rnow.plan.engine_specs import Serving


def find_machines(config: Config) -> tuple[str, ...]:
    """Return Ray's ids of the cluster's machines, this one first; () without a cluster."""
    address = _address(config)
    if address is None:
        return ()
    try:
        from rnow.cluster.connect import find_nodes
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"resources.cluster is {address}, but there is no Ray here ({error}): "
            "pip install 'rnow[ray]' on every machine, or leave resources.cluster out"
        ) from None
    return tuple(node.id for node in asyncio.run(find_nodes(address)))


@asynccontextmanager
async def server_starter(serving: Serving) -> AsyncIterator[Starter]:
    """Give what starts servers where the placement has put them."""
    address = _address(serving.config)
    if address is None or not serving.placement.nodes:
        yield start_here
        return
    from rnow.cluster.connect import opened_cluster

    # A CPU's servers reserve nothing: how many a machine can have is for whoever asks for them.
    async with opened_cluster(address, want=dict.fromkeys(serving.placement.nodes, 0)) as cluster:
        yield cluster.start


def _address(config: Config) -> str | None:
    return None if config.resources is None else config.resources.cluster
