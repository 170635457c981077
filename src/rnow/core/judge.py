"""`llm_judge`: there so that a rewards.py which imports it loads; calling it is refused."""

from typing import Any

from rnow.errors import RnowError

__all__ = ["llm_judge"]


async def llm_judge(prompt: str, *args: Any, **kwargs: Any) -> float:
    """Refuse: judging by a hosted model is not built."""
    raise RnowError(
        "llm_judge is not built: no other model is asked; grade with a function of your own"
    )
