"""The machines of the cluster that resources.cluster names; without it no Ray is imported."""

import asyncio

from rnow.config.settings import Config
from rnow.errors import ClusterError


def cluster_address(config: Config) -> str | None:
    return None if config.resources is None else config.resources.cluster


def find_machines(config: Config) -> tuple[str, ...]:
    """Return Ray's ids of the cluster's machines, this one first; () without a cluster."""
    address = cluster_address(config)
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
