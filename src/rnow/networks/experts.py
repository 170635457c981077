"""Mixtures of experts: how many experts a network has and a token meets, by its configuration."""

from typing import Any

# What transformers' configurations call the number of experts, and of those that a token meets.
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_top_k")


def has_experts(config: Any) -> bool:
    """Say it of transformers' configuration of a text network."""
    return num_experts(config) > 0


def num_experts(config: Any) -> int:
    """Return the routed experts of a layer; 0: the network is none."""
    return _first(config, _COUNTS) or 0


def num_chosen_experts(config: Any) -> int:
    """Return how many routed experts a token meets; all of them where nothing says."""
    return min(_first(config, _CHOSEN) or num_experts(config), num_experts(config))


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = getattr(config, name, None)
        # Where layers differ, one says a number for each.
        if isinstance(value, list | tuple):
            value = max(value, default=None)
        if value:
            return int(value)
    return None
