"""Several vLLM servers with the same weights behind one engine: which one is asked, and asking.

A session stays with the server that took its first request, whose prefix cache holds its text, for
as long as that server is there; everything else goes where the least is under way.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from rnow.engines.base import Completion, Sampled, SampleRequest, ScoreRequest, Scores
from rnow.engines.vllm import wire
from rnow.engines.vllm.http import HttpError, VllmClient
from rnow.errors import EngineError
from rnow.runtime.side_by_side import side_by_side

Value = TypeVar("Value")


class ServedModel(NamedTuple):
    """What a server says of the one model that is no adapter."""

    name: str
    max_model_len: int  # tokens of a request and what is sampled
    root: str  # folder or id that the server was started with; "" where it does not say


@dataclass(slots=True, eq=False)
class Replica:
    """One server, and what is known of it."""

    client: VllmClient
    num_requests: int = 0  # under way
    num_sessions: int = 0
    is_open: bool = True  # False: no request goes there, since its weights are being restored
    scores_compactly: bool | None = None  # None: not asked yet
    _facts: ServedModel | None = None
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def is_able(self) -> bool:
        return self.is_open and self.client.why_ended() is None

    async def model_for(self, num_tokens: int, num_more: int, adapter: str | None) -> str:
        """Return the name of the weights to ask, if so many tokens fit; None: the base model's."""
        name, max_model_len, _ = await self.facts()
        if num_tokens + num_more > max_model_len:
            raise EngineError(
                f"{num_tokens} tokens and {num_more} to sample exceed the server's "
                f"--max-model-len of {max_model_len}; lower rollout.max_context_window"
            )
        return adapter or name

    async def facts(self) -> ServedModel:
        """Return what the server says of its base model; asked for once."""
        async with self._asking:
            if self._facts is None:
                self._facts = _read_models(await self.client.get("/v1/models"), self.client.url)
        return self._facts

    def forget(self) -> None:
        """Another process answers at this address from now on."""
        self._facts = None
        self.scores_compactly = None


class Replicas:
    """The servers of one engine, and which sessions they have."""

    def __init__(self, clients: Sequence[VllmClient]) -> None:
        self.all = tuple(Replica(client) for client in clients)
        self._of_session: dict[str, Replica] = {}

    def for_session(self, session: str) -> Replica:
        replica = self._of_session.get(session)
        if replica is None or (not replica.is_able and replica not in self._able()):
            self.release(session)
            replica = min(self._able(), key=lambda each: (each.num_sessions, each.num_requests))
            replica.num_sessions += 1
            self._of_session[session] = replica
        return replica

    def least_loaded(self) -> Replica:
        return min(self._able(), key=lambda each: each.num_requests)

    def at(self, url: str) -> Replica:
        for replica in self.all:
            if replica.client.url == url.rstrip("/"):
                return replica
        raise EngineError(f"no server of this engine has the url {url}")

    def _able(self) -> Sequence[Replica]:
        """Leave out servers known to have ended: failing at once, they would draw all requests."""
        return [each for each in self.all if each.is_able] or self.all

    def release(self, session: str) -> None:
        replica = self._of_session.pop(session, None)
        if replica is not None:
            replica.num_sessions -= 1

    @property
    def num_requests(self) -> int:
        return sum(replica.num_requests for replica in self.all)


@contextmanager
def one_more(replica: Replica) -> Iterator[None]:
    """Count a request while it is under way."""
    replica.num_requests += 1
    try:
        yield
    finally:
        replica.num_requests -= 1


async def sample_at(
    replica: Replica, request: SampleRequest, *, adapter: str | None, cut: wire.Cut | None = None
) -> Completion:
    """Sample from an adapter; `adapter` None: from the base model's weights."""
    model = await replica.model_for(len(request.token_ids), request.max_tokens, adapter)
    return await _generate(
        replica,
        wire.sample_body(request, model=model, cut=cut),
        lambda answer: wire.read_completion(
            answer, request, model=model, was_cut=cut is not None and cut.is_asked
        ),
    )


async def sample_apart(
    replica: Replica, requests: Sequence[SampleRequest], *, adapter: str | None
) -> Sampled:
    """Sample the first request alone, then all: servers decode these by different graphs."""
    with one_more(replica):
        alone = await sample_at(replica, requests[0], adapter=adapter)
        together = await side_by_side(
            *(sample_at(replica, request, adapter=adapter) for request in requests)
        )
    return Sampled(where=replica.client.url, alone=alone, together=tuple(together))


async def score_at(replica: Replica, request: ScoreRequest, *, adapter: str | None) -> Scores:
    """Score a whole sequence in one request."""
    with one_more(replica):
        model = await replica.model_for(len(request.token_ids), 1, adapter)
        if request.num_top == 0 and replica.scores_compactly is not False:
            scores = await _score_compactly(replica, request, model)
            if scores is not None:
                return scores
        return await _generate(
            replica,
            wire.score_body(request, model=model),
            lambda answer: wire.read_scores(answer, request, model=model),
        )


async def _score_compactly(replica: Replica, request: ScoreRequest, model: str) -> Scores | None:
    """Score by the compact route; None where there was no answer by it.

    Only a server that does not know the route is remembered as such: one that does drops the
    numbers of a request now and then, which it had put off for others.
    """

    def read(answer: Any) -> Scores | None:
        replica.scores_compactly = wire.COMPACT_ANSWER in answer
        return wire.read_compact_scores(answer, request, model=model)

    try:
        return await _generate(replica, wire.compact_score_body(request, model=model), read)
    except HttpError as error:
        if error.status != 400 or "prompt_logprob_token_ids" not in error.text:
            raise
        replica.scores_compactly = False
        return None


async def _generate(
    replica: Replica, body: Mapping[str, Any], read: Callable[[Any], Value]
) -> Value:
    """Post `body` to the token route; name the server in what is wrong with its answer."""
    answer = await replica.client.post(wire.ROUTE, body)
    try:
        return read(answer)
    except EngineError as error:
        raise EngineError(f"POST {replica.client.url}{wire.ROUTE}: {error}") from error


def _read_models(answer: Any, url: str) -> ServedModel:
    match answer:
        case {"data": list(models)}:
            for model in models:
                match model:
                    case {"id": str(name), "parent": None, "max_model_len": int(max_model_len)}:
                        return ServedModel(name, max_model_len, str(model.get("root") or ""))
    raise EngineError(f"GET {url}/v1/models names no base model: {str(answer)[:300]}")
