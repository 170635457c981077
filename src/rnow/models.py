"""`rnow.core` under the name that users of the public rnow client import types from."""

from rnow.core import RewardArgs, ToolArgs, get_response, reward, tool

__all__ = ["RewardArgs", "ToolArgs", "get_response", "reward", "tool"]
