"""An engine without a model: it answers what a script says and remembers what it was asked.

Tests of whatever speaks to an engine run on it: they exercise the true loop and patch nothing.
The log-probability of a token is a function of the ids up to and including it, the same in `sample`
and in `score`: a scripted student and a scripted teacher with one function agree to the bit.
"""

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rnow.engines.base import Completion, Engine, Scores
from rnow.errors import EngineError
from rnow.records import FloatArray, StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One call of `sample`, as it came."""

    token_ids: tuple[int, ...]
    session: str
    turn: int  # how many samples of this session came before
    max_tokens: int
    stop_token_ids: tuple[int, ...]
    seed: int
    policy_version: int
    temperature: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """One call of `score`, as it came."""

    token_ids: tuple[int, ...]
    start: int
    num_top: int
    policy_version: int | None


Script = Callable[[SampleRequest], Sequence[int] | Awaitable[Sequence[int]]]
Logprob = Callable[[Sequence[int]], float]


class ScriptedEngine(Engine):
    """Answers turn n of every session with `script[n]`, or with what `script(request)` gives.

    An answer longer than max_tokens is cut there. One that ends in a stop token ended by itself;
    any other counts as cut at its length.

        engine = ScriptedEngine([[11, 12, 2], [13, 2]])
    """

    def __init__(
        self, script: Sequence[Sequence[int]] | Script, *, logprob: Logprob = lambda ids: -0.5
    ) -> None:
        self._script = script
        self._logprob = logprob
        self._turns: Counter[str] = Counter()
        self.samples: list[SampleRequest] = []
        self.scores: list[ScoreRequest] = []
        self.released: list[str] = []
        self.policies: dict[int, Path] = {}
        self.closed = False

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
        request = SampleRequest(
            token_ids=tuple(token_ids),
            session=session,
            turn=self._turns[session],
            max_tokens=max_tokens,
            stop_token_ids=tuple(stop_token_ids),
            seed=seed,
            policy_version=policy_version,
            temperature=temperature,
        )
        self._turns[session] += 1
        self.samples.append(request)
        answer = list(await self._answer(request))[:max_tokens]
        stopped = bool(answer) and answer[-1] in request.stop_token_ids
        everything = [*request.token_ids, *answer]
        return Completion(
            prompt_ids=np.array(request.token_ids, dtype=np.int32),
            token_ids=np.array(answer, dtype=np.int32),
            logprobs=self._logprobs(everything, start=len(request.token_ids)),
            stop_reason=StopReason.STOP if stopped else StopReason.LENGTH,
            policy_version=policy_version,
        )

    async def score(
        self,
        token_ids: Sequence[int],
        *,
        start: int,
        num_top: int = 0,
        policy_version: int | None = None,
    ) -> Scores:
        ids = tuple(token_ids)
        self.scores.append(
            ScoreRequest(token_ids=ids, start=start, num_top=num_top, policy_version=policy_version)
        )
        logprobs = self._logprobs(ids, start=start)
        # The favourites: the token itself and its neighbours, each one nat below the one before.
        ranks = np.arange(num_top)
        tokens = np.array(ids[start:], dtype=np.int32)
        return Scores(
            logprobs=logprobs,
            top_ids=(tokens[:, None] + ranks).astype(np.int32),
            top_logprobs=(logprobs[:, None] - ranks).astype(np.float32),
        )

    async def probe(
        self, token_ids: Sequence[int], *, start: int, policy_version: int
    ) -> tuple[Scores, ...]:
        return (await self.score(token_ids, start=start, policy_version=policy_version),)

    async def load_policy(self, path: Path, policy_version: int) -> None:
        self.policies[policy_version] = path

    async def unload_policy(self, policy_version: int) -> None:
        self.policies.pop(policy_version, None)

    async def release(self, session: str) -> None:
        self.released.append(session)

    async def health(self) -> None:
        if self.closed:
            raise EngineError("the scripted engine is closed")

    async def aclose(self) -> None:
        self.closed = True

    async def _answer(self, request: SampleRequest) -> Sequence[int]:
        if callable(self._script):
            answer = self._script(request)
            return await answer if inspect.isawaitable(answer) else answer
        if request.turn >= len(self._script):
            raise EngineError(
                f"the script has {len(self._script)} turns; "
                f"session {request.session} asks for another"
            )
        return self._script[request.turn]

    def _logprobs(self, ids: Sequence[int], *, start: int) -> FloatArray:
        values = [self._logprob(ids[: i + 1]) for i in range(start, len(ids))]
        return np.array(values, dtype=np.float32)
