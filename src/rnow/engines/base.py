"""The seam to whatever runs a model: token ids in, token ids and log-probabilities out, never text.

Student and teacher are the same kind of thing in two roles. `LocalEngine` runs in this process;
a served engine speaks to another one over HTTP. Neither role knows which it got.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rnow.records import FloatArray, IntArray, StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One generation.

    Completion(prompt_ids=[1, 5], token_ids=[9, 2], logprobs=[-0.7, -0.01],
               stop_reason=StopReason.STOP, policy_version=3)
    """

    prompt_ids: IntArray  # [prompt tokens] the ids that the engine says it received
    token_ids: IntArray  # [sampled tokens] a sampled stop token is the last one
    logprobs: FloatArray  # [sampled tokens] nats at temperature 1, all finite
    stop_reason: StopReason
    policy_version: int  # of the weights that sampled all of these tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Log-probabilities of given tokens: `logprobs[j]` is log p(token_ids[start + j] | before)."""

    logprobs: FloatArray  # [len(token_ids) - start] nats, all finite
    top_ids: IntArray  # [len(token_ids) - start, num_top] the model's favourites, best first
    top_logprobs: FloatArray  # [len(token_ids) - start, num_top] nats


class Engine(Protocol):
    """Runs one model. Every method raises `EngineError` when it cannot do what it says."""

    async def sample(
        self,
        token_ids: Sequence[int],
        *,
        session: str,
        max_tokens: int,
        stop_token_ids: Sequence[int],
        seed: int,
        policy_version: int,
        temperature: float = 1.0,
    ) -> Completion:
        """Continue `token_ids`; `temperature` 0 is greedy.

        `session` is the trajectory's id: calls of one session extend each other, so an engine may
        keep their KV cache.
        """
        ...

    async def score(
        self,
        token_ids: Sequence[int],
        *,
        start: int,
        num_top: int = 0,
        policy_version: int | None = None,
    ) -> Scores:
        """Return log p(token_ids[i] | token_ids[:i]) for i >= start >= 1, at temperature 1.

        `policy_version` None: the weights that the engine was started with (the teacher's case).
        """
        ...

    async def probe(
        self, token_ids: Sequence[int], *, start: int, policy_version: int
    ) -> tuple[Scores, ...]:
        """Score by every copy of the weights, one for each server: one of them may be stale."""
        ...

    async def load_policy(self, path: Path, policy_version: int) -> None:
        """Make the weights under `path` (adapter or whole model) samplable as this version."""
        ...

    async def unload_policy(self, policy_version: int) -> None: ...

    async def release(self, session: str) -> None:
        """Forget what is kept for `session`; unknown sessions are fine."""
        ...

    async def health(self) -> None:
        """Raise EngineError if the engine cannot serve."""
        ...

    async def aclose(self) -> None: ...
