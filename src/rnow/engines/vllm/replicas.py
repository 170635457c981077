"""Several vLLM servers with the same weights behind one engine: which of them takes a request.

A session stays with the server that took its first request, whose prefix cache holds its text, for
as long as that server is there; everything else goes where the least is under way.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rnow.engines.vllm.http import VllmClient
from rnow.errors import EngineError


@dataclass(slots=True, eq=False)
class Replica:
    """One server, and what is known of it."""

    client: VllmClient
    num_requests: int = 0  # under way
    num_sessions: int = 0
    is_open: bool = True  # False: no request goes there, since its weights are being restored
    scores_compactly: bool | None = None  # None: not asked yet
    _facts: "tuple[str, int] | None" = None
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def facts(self) -> tuple[str, int]:
        """Return the base model's name and the tokens that a request may have; asked for once."""
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
        able = self._able()
        if replica is None or replica not in able:
            self.release(session)
            replica = min(able, key=lambda each: (each.num_sessions, each.num_requests))
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
        able = [each for each in self.all if each.is_open and each.client.why_ended() is None]
        return able or self.all

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


def _read_models(answer: Any, url: str) -> tuple[str, int]:
    """Return name and context of the one model that is no adapter."""
    match answer:
        case {"data": list(models)}:
            for model in models:
                match model:
                    case {"id": str(name), "parent": None, "max_model_len": int(max_model_len)}:
                        return name, max_model_len
    raise EngineError(f"GET {url}/v1/models names no base model: {str(answer)[:300]}")
