"""One request to the token route of one vLLM server, and what it may answer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rnow.engines.base import Scores
from rnow.engines.vllm import wire
from rnow.engines.vllm.http import HttpError
from rnow.engines.vllm.replicas import Replica, one_more
from rnow.errors import EngineError

Value = TypeVar("Value")


async def score_at(
    replica: Replica,
    token_ids: Sequence[int],
    *,
    start: int,
    num_top: int = 0,
    adapter: str | None,
) -> Scores:
    """Score a whole sequence in one request; `adapter` None: by the base model's weights."""
    with one_more(replica):
        name, max_model_len = await replica.facts()
        check_length(len(token_ids), 1, max_model_len)
        model = adapter or name
        if num_top == 0 and replica.scores_compactly is not False:
            scores = await _score_compactly(replica, token_ids, model, start)
            if scores is not None:
                return scores
        body = wire.score_body(token_ids, model=model, num_top=num_top)
        return await generate(
            replica, body, lambda answer: wire.read_scores(answer, body, start, num_top)
        )


async def _score_compactly(
    replica: Replica, token_ids: Sequence[int], model: str, start: int
) -> Scores | None:
    """Score by the compact route; None where this server has none, which is remembered."""
    body = wire.compact_score_body(token_ids, model=model, start=start)
    try:
        scores = await generate(
            replica, body, lambda answer: wire.read_compact_scores(answer, body, start)
        )
    except HttpError as error:
        if error.status != 400 or "prompt_logprob_token_ids" not in error.text:
            raise
        scores = None
    replica.scores_compactly = scores is not None
    return scores


def check_length(num_tokens: int, num_more: int, max_model_len: int) -> None:
    if num_tokens + num_more > max_model_len:
        raise EngineError(
            f"{num_tokens} tokens and {num_more} to sample exceed the server's --max-model-len of "
            f"{max_model_len}; lower rollout.max_context_window"
        )


async def generate(
    replica: Replica, body: Mapping[str, Any], read: Callable[[Any], Value]
) -> Value:
    """Post `body` to the token route; name the server in what is wrong with its answer."""
    answer = await replica.client.post(wire.ROUTE, body)
    try:
        return read(answer)
    except EngineError as error:
        raise EngineError(f"POST {replica.client.url}{wire.ROUTE}: {error}") from error
