"""The machines of the cluster that resources.cluster names; without it no Ray is imported."""

from pathlib import Path

from rnow.config.settings import Config
from rnow.errors import ClusterError
from rnow.plan.nodes import Machine
from rnow.plan.placing import find_python
from rnow.runtime.main_task import run_main


def cluster_address(config: Config) -> str | None:
    return None if config.resources is None else config.resources.cluster


def find_machines(config: Config, project: Path) -> tuple[Machine, ...]:
    """Return the machines of the cluster, this one first; () where there is none.

    Raises ClusterError where they differ in what has to be the same.
    """
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
    return run_main(find_nodes(address, python=find_python(config, project)))
