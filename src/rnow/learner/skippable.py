"""Whether a network's last layer may leave out the tokens that nobody asks for.

networks/last_layer.py knows a layer's parts by their names; what they do is tried here, with a
short text: the same log-probabilities, and the same gradient in the first layer.
"""

import torch
from torch import Tensor

from rnow.learner.network import Network
from rnow.learner.packable import tolerance_of

_NUM_TOKENS, _ACTIONS = 11, (3, 4, 7, 10)


def bears_skipping(network: Network) -> bool:
    """Try it; the network is left as it was."""
    kept = network.skips_rows
    try:
        whole, parted = (_numbers(network, skips=skips) for skips in (False, True))
    except (RuntimeError, TypeError, ValueError, AttributeError):  # its parts are called otherwise
        return False
    finally:
        network.skips_rows = kept
    tolerance = tolerance_of(network.dtype)
    return all(
        bool((one - other).norm() <= tolerance * one.norm())
        for one, other in zip(whole, parted, strict=True)
    )


def _numbers(network: Network, *, skips: bool) -> list[Tensor]:
    """Return log-probabilities, and their gradient by all that is trained in the first layer."""
    network.skips_rows = skips
    device = network.head.weight.device
    ids = torch.arange(_NUM_TOKENS, device=device)[None] % network.head.weight.shape[0]
    positions = torch.arange(_NUM_TOKENS, device=device)[None]
    logprobs = network(ids, positions, torch.tensor(_ACTIONS, device=device))
    layers = getattr(network.body, "layers", None) or [network.body]
    trained = [one for one in layers[0].parameters() if one.requires_grad]
    gradients = torch.autograd.grad(logprobs.sum(), trained, allow_unused=True)
    return [logprobs.detach(), *(one for one in gradients if one is not None)]
