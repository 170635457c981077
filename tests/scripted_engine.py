"""An engine without a model: it answers what a script says and remembers what it was asked.

Tests of whatever speaks to an engine run on it: they exercise the true loop and patch nothing.
The log-probability of a token is a function of the ids up to and including it, the same in `sample`
and in `score`: a scripted student and a scripted teacher with one function agree to the bit.
"""

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np

from rnow.engines.base import Completion, Engine, Sampled, SampleRequest, ScoreRequest, Scores
from rnow.errors import EngineError
from rnow.records import FloatArray, StopReason

# (request, turn): how many samples of this session came before
Script = Callable[[SampleRequest, int], Sequence[int] | Awaitable[Sequence[int]]]
Logprob = Callable[[Sequence[int]], float]


class ScriptedEngine(Engine):
    """Answers turn n of every session with `script[n]`, or with what `script(request, n)`
    gives.

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

    async def sample(self, request: SampleRequest) -> Completion:
        turn = self._turns[request.session]
        self._turns[request.session] += 1
        self.samples.append(request)
        answer = list(await self._answer(request, turn))[: request.max_tokens]
        stopped = bool(answer) and answer[-1] in request.stop_token_ids
        everything = [*request.token_ids, *answer]
        return Completion(
            prompt_ids=np.array(request.token_ids, dtype=np.int32),
            token_ids=np.array(answer, dtype=np.int32),
            logprobs=self._logprobs(everything, start=len(request.token_ids)),
            stop_reason=StopReason.STOP if stopped else StopReason.LENGTH,
            policy_version=request.policy_version,
        )

    async def score(self, request: ScoreRequest) -> Scores:
        self.scores.append(request)
        everything = self._logprobs(request.token_ids, start=request.start)
        logprobs = everything[request.asked - request.start]
        # The favourites: the token itself and its neighbours, each one nat below the one before.
        ranks = np.arange(request.num_top)
        tokens = np.array(request.token_ids, dtype=np.int32)[request.asked]
        return Scores(
            logprobs=logprobs,
            top_ids=(tokens[:, None] + ranks).astype(np.int32),
            top_logprobs=(logprobs[:, None] - ranks).astype(np.float32),
        )

    async def probe(self, request: ScoreRequest) -> tuple[Scores, ...]:
        return (await self.score(request),)

    async def probe_sampling(self, requests: Sequence[SampleRequest]) -> tuple[Sampled, ...]:
        """Repeat each request's last token; the script is for sessions."""
        completions = tuple(self._repeat_last(request) for request in requests)
        return (Sampled(where="the script", alone=completions[0], together=completions),)

    async def load_policy(self, path: Path, policy_version: int) -> None:
        self.policies[policy_version] = path

    async def unload_policy(self, policy_version: int) -> None:
        self.policies.pop(policy_version, None)

    async def release(self, session: str) -> None:
        self.released.append(session)

    async def aclose(self) -> None:
        self.closed = True

    def _repeat_last(self, request: SampleRequest) -> Completion:
        answer = request.token_ids[-1:] * request.max_tokens
        everything = (*request.token_ids, *answer)
        return Completion(
            prompt_ids=np.array(request.token_ids, dtype=np.int32),
            token_ids=np.array(answer, dtype=np.int32),
            logprobs=self._logprobs(everything, start=len(request.token_ids)),
            stop_reason=StopReason.LENGTH,
            policy_version=request.policy_version,
        )

    async def _answer(self, request: SampleRequest, turn: int) -> Sequence[int]:
        if callable(self._script):
            answer = self._script(request, turn)
            return await answer if inspect.isawaitable(answer) else answer
        if turn >= len(self._script):
            raise EngineError(
                f"the script has {len(self._script)} turns; "
                f"session {request.session} asks for another"
            )
        return self._script[turn]

    def _logprobs(self, ids: Sequence[int], *, start: int) -> FloatArray:
        values = [self._logprob(ids[: i + 1]) for i in range(start, len(ids))]
        return np.array(values, dtype=np.float32)
