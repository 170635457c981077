"""Whether trajectories may stand one after another in one row of a network.

Attention is told where each begins (attention.py). A convolution or a state that is carried along
the row is not, and would mix one trajectory into the next without a word: Qwen3-Next, Qwen3.5,
Mamba and their hybrids. Attention in chunks counted from the row's beginning would be cut at other
places. A network that does any of this gets a row for each trajectory.
"""

import torch

from rnow.learner.network import Network

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
# How far apart the same tokens may be: rounding in another shape, not another trajectory's words.
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-3}
_WIDE_TOLERANCE = 0.05  # of half precision


def why_not_packed(network: Network) -> str | None:
    """Return what stands against it; None: nothing does."""
    config = network.causal_lm.config.get_text_config()
    odd = sorted(set(getattr(config, "layer_types", None) or ()) - _KNOWN_LAYERS)
    if odd:
        return f"it has layers of kind {', '.join(odd)}"
    difference = _difference(network)
    if not difference <= tolerance_of(network.dtype):
        return (
            "what stands before a trajectory in its row changes it: "
            f"by {difference:.2g} of its hidden states"
        )
    return None


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the relative error of numbers that are made of products in `dtype` in two ways."""
    return _TOLERANCES.get(dtype, _WIDE_TOLERANCE)


@torch.no_grad()
def _difference(network: Network) -> float:
    """Read a sequence alone and behind another; return how far its hidden states are apart."""
    device = network.head.weight.device
    ids = torch.arange(11, device=device)[None] % network.head.weight.shape[0]
    positions = torch.tensor([[*range(6), *range(5)]], device=device)
    alone, behind = (
        network.hidden_states(ids[:, start:], positions[:, start:])[:, -5:] for start in (6, 0)
    )
    return float((behind - alone).float().norm() / alone.float().norm())
