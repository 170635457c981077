"""What a project's tools.py and rewards.py import.

Importing it is cheap and has no side effects: neither aiohttp nor torch comes with it.
"""

from rnow.core.counts import count
from rnow.core.grader import (
    GRADER_REGISTRY,
    clear_grader_registry,
    grader,
    is_not_available,
    labelled_line,
    same_text,
)
from rnow.core.messages import get_response
from rnow.core.reward import (
    REWARD_REGISTRY,
    RewardArgs,
    clear_reward_registry,
    compute_total_reward,
    is_precondition,
    is_sandbox_reward,
    llm_judge,
    reward,
)
from rnow.core.tool import (
    TOOL_REGISTRY,
    ToolArgs,
    clear_tool_registry,
    is_sandbox_tool,
    tool,
)

__all__ = [
    "GRADER_REGISTRY",
    "REWARD_REGISTRY",
    "TOOL_REGISTRY",
    "RewardArgs",
    "ToolArgs",
    "clear_grader_registry",
    "clear_reward_registry",
    "clear_tool_registry",
    "compute_total_reward",
    "count",
    "get_response",
    "grader",
    "is_not_available",
    "is_precondition",
    "is_sandbox_reward",
    "is_sandbox_tool",
    "labelled_line",
    "llm_judge",
    "reward",
    "same_text",
    "tool",
]
