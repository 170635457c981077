"""The seam to whatever runs a model: token ids in, token ids and log-probabilities out, never text.

Student and teacher are the same kind of thing in two roles. `LocalEngine` runs in this process;
a served engine speaks to another one over HTTP. Neither role knows which it got.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np

from rnow.errors import EngineError
from rnow.records import FloatArray, IntArray, StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """What one generation is to be; an `EngineError` if it can be none.

    SampleRequest(token_ids=(1, 5), session="0.5.1", max_tokens=64, stop_token_ids=(2,), seed=7,
                  policy_version=3)
    """

    token_ids: tuple[int, ...]  # to continue
    session: str  # the trajectory's id: its calls extend each other, their KV cache may be kept
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    seed: int
    policy_version: int
    temperature: float = 1.0  # 0 is greedy

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise EngineError(
                f"max_tokens is {self.max_tokens}; a generation has at least one token"
            )
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise EngineError(
                f"temperature is {self.temperature}; 0 is greedy, else it is positive"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Of which tokens the log-probabilities are asked; an `EngineError` if there are none.

    ScoreRequest(token_ids=(1, 5, 9, 2, 4), start=2, positions=(2, 4))
    """

    token_ids: tuple[int, ...]
    start: int  # the first token whose log-probability is wanted, at least 1
    positions: tuple[int, ...] | None = None  # wanted, from `start` on, ascending; None: all
    num_top: int = 0  # favourites at each position
    policy_version: int | None = None  # None: the weights at the engine's start (the teacher's)

    def __post_init__(self) -> None:
        num_tokens = len(self.token_ids)
        if not 1 <= self.start < num_tokens:
            raise EngineError(
                f"start is {self.start}; with {num_tokens} tokens it is 1 to {num_tokens - 1}"
            )
        if self.positions is None:
            return
        borders = (self.start - 1, *self.positions, num_tokens)
        if not self.positions or any(a >= b for a, b in pairwise(borders)):
            raise EngineError(
                f"{len(self.positions)} positions are asked; with {num_tokens} tokens they are "
                f"at least one, ascending, from {self.start} to {num_tokens - 1}"
            )

    @property
    def asked(self) -> IntArray:
        """The places in `token_ids` of the tokens whose log-probabilities are wanted."""
        every = range(self.start, len(self.token_ids))
        return np.array(every if self.positions is None else self.positions, dtype=np.int32)


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

    def without_last(self) -> "Completion":
        """Return the generation as if it had been cut before its last token."""
        return replace(
            self,
            token_ids=self.token_ids[:-1],
            logprobs=self.logprobs[:-1],
            stop_reason=StopReason.LENGTH,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Log-probabilities of given tokens: `logprobs[j]` is log p(token_ids[asked[j]] | before)."""

    logprobs: FloatArray  # [asked] nats, all finite
    top_ids: IntArray  # [asked, num_top] the model's favourites, best first
    top_logprobs: FloatArray  # [asked, num_top] nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What one copy of the weights sampled for a probe: decoding has code of its own, in which
    weights can be stale that a prompt is read with.

    Sampled(where="http://127.0.0.1:8000", alone=completion, together=(completion, …))
    """

    where: str  # names the copy in messages
    alone: Completion  # the first request, with nothing else under way
    together: tuple[Completion, ...]  # all requests at once


class Engine(Protocol):
    """Runs one model. Every method raises `EngineError` when it cannot do what it says."""

    async def sample(self, request: SampleRequest) -> Completion: ...

    async def score(self, request: ScoreRequest) -> Scores:
        """Return log p(token_ids[i] | token_ids[:i]) for each i asked, at temperature 1."""
        ...

    async def probe(self, request: ScoreRequest) -> tuple[Scores, ...]:
        """Score by every copy of the weights, one for each server: one of them may be stale."""
        ...

    async def probe_sampling(self, requests: Sequence[SampleRequest]) -> tuple[Sampled, ...]:
        """Sample at every copy of the weights, whose sessions are forgotten."""
        ...

    async def load_policy(self, path: Path, policy_version: int) -> None:
        """Make the weights under `path` (adapter or whole model) samplable as this version."""
        ...

    async def unload_policy(self, policy_version: int) -> None: ...

    async def release(self, session: str) -> None:
        """Forget what is kept for `session`; unknown sessions are fine."""
        ...

    async def aclose(self) -> None: ...
