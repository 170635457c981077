"""Is a server of the user's own what a run needs? Asked before anything is loaded; nothing there
changes by it.
"""

import asyncio
from dataclasses import dataclass
from typing import Literal

from rnow.engines.base import ScoreRequest
from rnow.engines.vllm.http import HttpError, VllmClient
from rnow.engines.vllm.replicas import Replica, ServedModel, score_at
from rnow.engines.vllm.weight_routes import ADVICE
from rnow.errors import EngineError

DEADLINE_S = 10.0
_ROUTES = {"adapters": "/v1/load_lora_adapter", "models": "/collective_rpc"}
_WRONG_METHOD = 405


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a run will ask of a server. Need(max_model_len=4097, takes=None)"""

    max_model_len: int  # tokens of the longest request
    takes: Literal["adapters", "models"] | None  # in which form it is given new weights


async def ask_server(url: str, need: Need, *, deadline_s: float = DEADLINE_S) -> ServedModel:
    """Return what the server at `url` has; EngineError where a run could not use it."""
    client = VllmClient(url, pauses_s=())
    try:
        async with asyncio.timeout(deadline_s):
            return await _ask(Replica(client), need)
    except TimeoutError as error:
        raise EngineError(f"{client.url} has not answered in {deadline_s:g} s") from error
    finally:
        await client.aclose()


async def _ask(replica: Replica, need: Need) -> ServedModel:
    served, client = await replica.facts(), replica.client
    if served.max_model_len < need.max_model_len:
        raise EngineError(
            f"{client.url} takes {served.max_model_len} tokens, and a run asks for "
            f"{need.max_model_len}; start it with --max-model-len {need.max_model_len}, or lower "
            "rollout.max_context_window"
        )
    await score_at(replica, ScoreRequest(token_ids=(0, 1), start=1), adapter=None)
    if need.takes is not None:
        await _require_route(client, _ROUTES[need.takes])
    return served


async def _require_route(client: VllmClient, route: str) -> None:
    """A route that takes POST alone says so to a GET."""
    try:
        await client.get(route)
    except HttpError as error:
        if error.status != _WRONG_METHOD:
            raise EngineError(f"{client.url} has no route {route}; {ADVICE}") from error
