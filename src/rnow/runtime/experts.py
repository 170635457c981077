"""Whether a network is a mixture of experts, by its configuration."""

from typing import Any

# What transformers' configurations call the number of experts.
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def has_experts(config: Any) -> bool:
    """Say it of transformers' configuration of a text network."""
    return any(getattr(config, name, None) for name in _COUNTS)
