"""A student whose weights are cut over the ranks (FSDP2): each holds a part of every matrix.

As a layer is called, its weights are gathered, and let go after it; what backward makes of them is
summed and each rank keeps its part. The unit is a layer of the body, and last the network as a
whole, which has the embedding and the LM head. An adapter is small and every rank holds all of it.
"""

from typing import Any, cast

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from rnow.learner.network import Network
from rnow.learner.ranks.group import Ranks


def shard(network: Network, ranks: Ranks, *, whole: set[nn.Parameter]) -> None:
    """Cut the weights of `network`, except `whole`, which every rank keeps, over the ranks.

    It is on the CPU until then: no device ever holds more than a layer beside its part.
    """
    mesh = DeviceMesh.from_group(ranks.group, ranks.device.type)
    for parameter in whole:
        parameter.data = parameter.data.to(ranks.device)
    options: dict[str, Any] = {"mesh": mesh, "ignored_params": whole}
    for layer in _layers(network):
        fully_shard(layer, **options)
    fully_shard(network, **options)
    network.is_cut = True
    for module in network.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the whole batch's N already: a sum, not a mean.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def let_go(network: Network) -> None:
    """Keep this rank's part alone after a forward that no backward follows."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _layers(module: nn.Module) -> list[nn.Module]:
    """Return the body's layers, none that is inside another."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    if isinstance(module, GradientCheckpointingLayer):
        return [cast(nn.Module, module)]
    return [layer for child in module.children() for layer in _layers(child)]
