"""`llm_judge`: there so that a rewards.py which imports it loads. Nothing runs rewards yet."""

from typing import Any

from rnow.errors import RnowError

__all__ = ["llm_judge"]


async def llm_judge(prompt: str, *args: Any, **kwargs: Any) -> float:
    """Refuse: judging by a hosted model is not built."""
    raise RnowError(
        "llm_judge is not built: distillation needs no rewards, and rnow does not run any yet; "
        "grade with a function of your own"
    )
