"""The machines of the cluster that resources.cluster names; without it no Ray is imported."""

import asyncio

from rnow.config.settings import Config
from rnow.errors import ClusterError
from rnow.plan.devices import Gpu


def cluster_address(config: Config) -> str | None:
    return None if config.resources is None else config.resources.cluster


def find_machines(config: Config) -> dict[str, tuple[Gpu, ...]]:
    """Return the GPUs of each machine of the cluster by Ray's id of it, this one first."""
    address = cluster_address(config)
    if address is None:
        return {}
    try:
        from rnow.cluster.connect import find_nodes
    except ModuleNotFoundError as error:
        raise ClusterError(
            f"resources.cluster is {address}, but there is no Ray here ({error}): "
            "pip install 'rnow[ray]' on every machine, or leave resources.cluster out"
        ) from None
    return {node.id: node.machine.gpus for node in asyncio.run(find_nodes(address))}
