"""From an address to the machines of a Ray cluster, each with a keeper; all of it is one run's.

    machines = await find_nodes("auto", python=None)
    async with opened_cluster(machines, want={machines[1].id: 4}) as cluster:
        server = await cluster.start(settings)

Ray is imported by this room alone, and only where resources.cluster is set.
"""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from rnow.cluster.keeper import Keeper
from rnow.cluster.looking import check_alike, describe_machine
from rnow.cluster.node import KeptServer, Node, SharedFiles
from rnow.engines.vllm.command import VllmServerSettings
from rnow.engines.vllm.server import Progress
from rnow.errors import ClusterError, DeadlineError, EngineError
from rnow.plan.nodes import Machine
from rnow.runtime.deadline import within
from rnow.runtime.side_by_side import each_to_its_end, side_by_side

_log = logging.getLogger(__name__)

_CONNECT_LIMIT_S = 60.0
_PAUSES_S = (1.0, 3.0)
_PLACE_LIMIT_S = 120.0
_CLOSE_LIMIT_S = 30.0
_REOPEN_LIMIT_S = 180.0  # Ray may take half a minute to see that a machine is gone
_MANY = 100_000  # requests that a keeper passes on at once


def connect(address: str) -> None:
    """Join the cluster at `address` ("auto": the one on this machine); joining twice is fine."""
    if ray.is_initialized():
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RayError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"resources.cluster is {address}, where no Ray cluster can be joined: {error}. Start "
            "one (ray start --head; on the other machines ray start --address=HEAD:6379), or "
            "leave resources.cluster out"
        ) from error
    finally:
        for number, handler in handlers.items():  # Ctrl-C and SIGTERM are the run's own
            signal.signal(number, handler)


async def find_nodes(address: str, *, python: str | None) -> tuple[Machine, ...]:
    """Return the machines that are alive, this one first; refuse those that differ.

    `python`: engine.python, which is looked at on each.
    """
    async with within(_CONNECT_LIMIT_S, f"cluster.connect to {address}"):
        connect(address)
        here = ray.get_runtime_context().get_node_id()
        alive = {
            node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]
        }
        ids = sorted(alive, key=lambda id: (id != here, id))
        looked = await side_by_side(*(_look(id, alive[id], python) for id in ids))
    found = tuple(machine for machine in looked if machine is not None)
    check_alike(found, python=python)
    return found


async def _look(id: str, address: str, python: str | None) -> Machine | None:
    """Look at one node; None where it is gone, although Ray still lists it for a while."""
    for pause_s in (*_PAUSES_S, None):  # one that has just joined is not known everywhere
        look = ray.remote(describe_machine).options(num_cpus=0, scheduling_strategy=_on(id))
        try:
            machine: Machine = await look.remote(id, address, python)
        except RayTaskError:
            raise
        except RayError as error:
            if pause_s is None:
                _log.warning("machine %s is left out: %s", id, error)
                return None
        else:
            return machine
        await asyncio.sleep(pause_s)
    raise AssertionError("unreachable")


def _on(id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(id, soft=False)


class Cluster:
    """The machines of one run. Servers are started on the node that their settings name; one whose
    machine is gone, on another."""

    def __init__(
        self, nodes: Sequence[Node], group: Any, *, others: Sequence[Machine] = ()
    ) -> None:
        self.nodes = {node.machine.id: node for node in nodes}
        self._group = group
        self._others = list(others)  # that are not used, while all goes well
        self._instead: dict[str, str] = {}  # of a machine that is gone: which one took its place
        self._replacing = asyncio.Lock()

    async def start(
        self,
        settings: VllmServerSettings,
        *,
        again: KeptServer | None = None,
        on_progress: Progress | None = None,
    ) -> KeptServer:
        """Start a server on its node; in the place of one whose node is gone, on another."""
        id = settings.node or "" if again is None else again.node.machine.id
        return await KeptServer.start(await self.node_for(id), settings, on_progress=on_progress)

    async def node_for(self, id: str) -> Node:
        """Return the machine of that id, or the one that has taken its place."""
        async with self._replacing:
            while (node := self.nodes[id]).why_gone is not None:
                if id not in self._instead and not await self._reopen(node):
                    self._instead[id] = self._other(node).machine.id
                id = self._instead.get(id, id)
            return node

    async def _reopen(self, gone: Node) -> bool:
        """Give a machine whose keeper alone has died a new one; say whether it is still there."""
        id = gone.machine.id
        with suppress(DeadlineError, RayTaskError):
            async with within(_REOPEN_LIMIT_S, f"cluster.look at {gone.name}"):
                if await _look(id, gone.machine.address, None) is None:
                    return False
            keeper = _keeper(gone.place, len(gone.machine.gpus))
            self.nodes[id] = replace(gone, keeper=keeper, why_gone=None, _folders={})
            return True
        return False

    def _other(self, gone: Node) -> Node:
        """Take another machine with as many GPUs, if the cluster has one, or share one."""
        num_gpus = len(gone.machine.gpus)
        for other in self._others:
            if len(other.gpus) >= num_gpus:
                self._others.remove(other)
                place = _on(other.id)
                keeper = _keeper(place, len(other.gpus))
                node = Node(machine=other, keeper=keeper, files=gone.files, place=place)
                self.nodes[other.id] = node
                return node
        return self._shared(gone)

    def _shared(self, gone: Node) -> Node:
        """Return a machine that has servers already: one without GPUs takes any number."""
        there = [node for node in self.nodes.values() if node.why_gone is None]
        if gone.machine.gpus or not there:
            raise EngineError(f"{gone.why_gone}, and no other machine can take its place")
        return there[-1]

    async def aclose(self) -> None:
        """End what runs on all machines and leave them to others."""
        there = [node for node in self.nodes.values() if node.why_gone is None]
        try:
            await each_to_its_end(*map(_close, there))
        finally:
            _give_back(self._group)


async def _close(node: Node) -> None:
    await node.end(node.keeper.close.remote(), "cluster.close", limit_s=_CLOSE_LIMIT_S)
    ray.kill(node.keeper)


@asynccontextmanager
async def opened_cluster(
    machines: Sequence[Machine], *, want: Mapping[str, int], limit_s: float = _PLACE_LIMIT_S
) -> AsyncIterator[Cluster]:
    """Take `want[node id]` GPUs of each node, all or none, and have a keeper there.

    `machines`: of the cluster that `find_nodes` has joined; those not wanted are in reserve.
    """
    found = {machine.id: machine for machine in machines}
    group = placement_group(
        [{"CPU": 0.001, **({"GPU": num} if num else {})} for num in want.values()],
        bundle_label_selector=[{"ray.io/node-id": id} for id in want],
    )
    try:
        async with within(limit_s, "cluster.place of all keepers"):
            await group.ready()
        cluster = _with_keepers(group, found, want)
    except DeadlineError as error:
        _give_back(group)
        asked = ", ".join(f"{num} on {found[id].host}" for id, num in want.items())
        raise ClusterError(
            f"{error}: Ray does not give the GPUs that are asked for ({asked}). A run takes all "
            "GPUs of a machine: look with `ray status` who has them"
        ) from error
    except BaseException:  # a run that is stopped meanwhile asks for them no longer
        _give_back(group)
        raise
    try:
        yield cluster
    finally:
        await cluster.aclose()


def _with_keepers(group: Any, found: Mapping[str, Machine], want: Mapping[str, int]) -> Cluster:
    files = SharedFiles()
    nodes = []
    for bundle, (id, num) in enumerate(want.items()):
        place = PlacementGroupSchedulingStrategy(group, bundle)
        nodes.append(Node(machine=found[id], keeper=_keeper(place, num), files=files, place=place))
    return Cluster(nodes, group, others=[found[id] for id in found if id not in want])


def _give_back(group: Any) -> None:
    with suppress(RayError):
        remove_placement_group(group)


def _keeper(strategy: Any, num_gpus: int) -> Any:
    options = {
        "num_cpus": 0.001,
        "num_gpus": num_gpus,
        "max_concurrency": _MANY,
        "max_restarts": 0,
        "scheduling_strategy": strategy,
    }
    return ray.remote(Keeper).options(**options).remote()
