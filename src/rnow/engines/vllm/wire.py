"""vLLM's token route: request bodies, and answers read without trust.

A sampled NaN or -inf comes back as -9999.0, and log-probabilities of a prompt come back by token
id: what is absent, not finite, or belongs to another token is an EngineError, never a number.
"""

import base64
import io
import itertools
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rnow.engines.base import Completion, SampleRequest, ScoreRequest, Scores
from rnow.errors import EngineError
from rnow.records import FloatArray, IntArray, StopReason

ROUTE = "/inference/v1/generate"
ABORT_ROUTE = "/inference/v1/abort_requests"
COMPACT_ANSWER = "prompt_token_id_logprobs"  # in every answer of a server that knows it
_NOT_A_LOGPROB = -9000.0  # at or below: the server's stand-in for NaN and -inf

Json = Mapping[str, Any]

_PROCESS = secrets.token_hex(8)  # asked of the system once: a server may have several clients
_numbers = itertools.count()

# Sampling is what rnow's formulas assume, whatever a model's generation_config says.
_PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "detokenize": False}
_SCORING = {"max_tokens": 1, "temperature": 0.0}  # a request has to sample one


@dataclass(slots=True)
class Cut:
    """A request's name at its server, by which it can be cut, and whether that was asked."""

    name: str = field(default_factory=lambda: f"{_PROCESS}-{next(_numbers)}")
    is_asked: bool = False


def abort_body(cut: Cut) -> dict[str, Any]:
    """Name a request as the server does that was given `cut.name`."""
    return {"request_ids": [f"generate-tokens-{cut.name}"]}


def sample_body(request: SampleRequest, *, model: str, cut: Cut | None = None) -> dict[str, Any]:
    sampling = _body(
        request,
        model,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        seed=request.seed,
        logprobs=0,
        stop_token_ids=list(request.stop_token_ids),
        ignore_eos=True,  # only what the caller calls a stop token is one
    )
    name = {} if cut is None else {"request_id": cut.name}
    return {**sampling, **name, "return_token_ids": True}


def score_body(request: ScoreRequest, *, model: str) -> dict[str, Any]:
    """Ask for every prompt token's log-probability: an object for each, from the first on."""
    return _body(request, model, **_SCORING, prompt_logprobs=request.num_top)


def compact_score_body(request: ScoreRequest, *, model: str) -> dict[str, Any]:
    """Ask for the log-probabilities from `start` on as one array; not every server can.

    Of all positions from there on: the route has no word for some of them.
    """
    return _body(
        request,
        model,
        **_SCORING,
        prompt_logprob_token_ids=[[token] for token in request.token_ids[request.start :]],
        prompt_logprob_start=request.start - 1,  # the row of a token is the position before it
    )


def _body(request: SampleRequest | ScoreRequest, model: str, **sampling: Any) -> dict[str, Any]:
    return {
        "model": model,
        "token_ids": request.token_ids,
        "sampling_params": {**_PLAIN, **sampling},
    }


def read_completion(
    answer: Json, request: SampleRequest, *, model: str, was_cut: bool = False
) -> Completion:
    """Return what was sampled for `request`; refuse an answer that is not one to it."""
    with _reading("completion", answer, model):
        choice = answer["choices"][0]
        token_ids = [int(token) for token in choice["token_ids"]]
        content = choice["logprobs"]["content"]
        if [entry["token_id"] for entry in content] != token_ids:
            raise EngineError(
                f"the server sampled {len(token_ids)} tokens and gave {len(content)} "
                "log-probabilities, which are not of the same tokens"
            )
        logprobs = [float(entry["logprob"]) for entry in content]
        finish = choice["finish_reason"]
        if finish == "abort" and was_cut and 0 < len(token_ids) < request.max_tokens:
            stop_reason = StopReason.LENGTH
        else:
            stop_reason = _stop_reason(finish, token_ids, request)
        prompt_ids = np.array(answer["prompt_token_ids"], dtype=np.int32)
    return Completion(
        prompt_ids=prompt_ids,
        token_ids=np.array(token_ids, dtype=np.int32),
        logprobs=_checked(logprobs, "sampled token", range(len(logprobs))),
        stop_reason=stop_reason,
        policy_version=request.policy_version,
    )


def read_scores(answer: Json, request: ScoreRequest, *, model: str) -> Scores:
    """Return those of the log-probabilities that `score_body` asked for that are wanted."""
    token_ids, num_top = request.token_ids, request.num_top
    with _reading("scores", answer, model):
        entries = answer["prompt_logprobs"]
        if len(entries) != len(token_ids):
            raise EngineError(
                f"the server scored {len(entries)} positions of {len(token_ids)} tokens"
            )
        rows = [
            _row(entry, position, token_ids[position], num_top)
            for position, entry in ((place, entries[place]) for place in request.asked)
        ]
    return Scores(
        logprobs=_checked([row[0] for row in rows], "token", request.asked),
        top_ids=np.array([row[1] for row in rows], dtype=np.int32).reshape(len(rows), num_top),
        top_logprobs=np.array([row[2] for row in rows], dtype=np.float32).reshape(
            len(rows), num_top
        ),
    )


def read_compact_scores(answer: Json, request: ScoreRequest, *, model: str) -> Scores | None:
    """Return what `compact_score_body` asked for; None: it is not in the answer."""
    num_scored = len(request.token_ids) - request.start
    with _reading("scores", answer, model):
        encoded = answer.get(COMPACT_ANSWER)
        if encoded is None:
            return None
        values = np.load(io.BytesIO(base64.b64decode(encoded)), allow_pickle=False)
        if values.shape != (num_scored, 1):
            raise EngineError(
                f"the server gave {values.shape} log-probabilities, not ({num_scored}, 1)"
            )
    asked = request.asked
    return Scores(
        logprobs=_checked(values[asked - request.start, 0], "token", asked),
        top_ids=np.empty((len(asked), 0), dtype=np.int32),
        top_logprobs=np.empty((len(asked), 0), dtype=np.float32),
    )


def _row(
    entry: Mapping[str, Json] | None, position: int, token: int, num_top: int
) -> tuple[float, list[int], list[float]]:
    """Return a position's log-probability of `token`, and its favourites, best first."""
    if entry is None or str(token) not in entry:
        given = "none" if entry is None else ", ".join(sorted(entry))
        raise EngineError(
            f"the server gave no log-probability of token {position}, id {token} (given: {given})"
        )
    best = sorted(
        (value["rank"], int(name), float(value["logprob"]))
        for name, value in entry.items()
        if num_top and value["rank"] <= num_top
    )[:num_top]
    if len(best) != num_top:
        raise EngineError(f"the server gave {len(best)} favourites at token {position}")
    return float(entry[str(token)]["logprob"]), [id_ for _, id_, _ in best], [lp for *_, lp in best]


def _stop_reason(finish: str, token_ids: Sequence[int], asked: SampleRequest) -> StopReason:
    if finish == "stop" and token_ids and token_ids[-1] in asked.stop_token_ids:
        return StopReason.STOP
    if finish == "length" and len(token_ids) == asked.max_tokens:
        return StopReason.LENGTH
    raise EngineError(
        f"the server ended with {finish!r} after {len(token_ids)} tokens, the last of them "
        f"{token_ids[-1] if token_ids else None}; at most {asked.max_tokens} and a stop token "
        f"of {list(asked.stop_token_ids)} were asked for"
    )


def _checked(
    values: Sequence[float] | FloatArray, what: str, places: Sequence[int] | IntArray
) -> FloatArray:
    array = np.asarray(values, dtype=np.float32)
    fine = np.isfinite(array) & (array > _NOT_A_LOGPROB)
    if not fine.all():
        index = int(np.argmin(fine))
        raise EngineError(
            f"the log-probability of {what} {places[index]} is not finite "
            f"(the server gave {array[index]:g})"
        )
    return array


@contextmanager
def _reading(what: str, answer: Json, model: str) -> Iterator[None]:
    """Refuse the answer of another model, and one that has another form."""
    try:
        if answer["model"] != model:
            raise EngineError(f"model {model} was asked, {answer['model']} answered")
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(
            f"the server's answer is not a {what}: {type(error).__name__}: {error}"
        ) from error
