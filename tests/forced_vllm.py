"""A server as vllm_fake.py's with a real network behind it: it writes the turns that it is told to,
and says how likely the network finds them.

    student in this process  ◀──  log-probabilities of a turn that somebody wrote  ◀──  POST

So a run goes through every part with a student that calls its tools, which no network of random
weights does.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from aiohttp import web
from vllm_fake import FakeVllm, Json, error

from rnow.engines.base import ScoreRequest
from rnow.engines.local.engine import LocalEngine

TurnOf = Callable[[Sequence[int]], Sequence[int]]  # ids of a prompt -> those that follow


class ForcedVllm(FakeVllm):
    def __init__(self, engine: LocalEngine, turn_of: TurnOf, *, max_model_len: int) -> None:
        super().__init__()
        self.max_model_len = max_model_len
        self._engine = engine
        self._turn_of = turn_of

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method != "POST":
            return await super().answer(request)
        body = await request.json()
        if request.path == "/v1/load_lora_adapter":
            await self._engine.load_policy(Path(body["lora_path"]), len(self.adapters) + 1)
        if request.path != "/inference/v1/generate":
            return await super().answer(request)
        if "prompt_logprob_token_ids" in body["sampling_params"]:
            return error(400, "prompt_logprob_token_ids requires the V2 model runner")
        return web.json_response(await self._generate(body))

    async def _generate(self, body: Json) -> Json:
        ids, is_scored = body["token_ids"], "prompt_logprobs" in body["sampling_params"]
        turn = ids[-1:] if is_scored else [*self._turn_of(ids)]
        if not is_scored and not body["sampling_params"]["stop_token_ids"]:  # a probe
            num = body["sampling_params"]["max_tokens"]
            turn = (turn * num)[:num]
        before, whole = (ids[:-1], ids) if is_scored else (ids, ids + turn)
        start = 1 if is_scored else len(ids)
        names = [self.model, *self.adapters]
        scores = await self._engine.score(
            ScoreRequest(
                token_ids=tuple(whole), start=start, policy_version=names.index(body["model"])
            )
        )
        found = [
            {"token_id": id, "logprob": float(logprob), "rank": 1}
            for id, logprob in zip(whole[start:], scores.logprobs, strict=True)
        ]
        of_turn = found[len(before) - start :]
        return {
            "model": body["model"],
            "prompt_token_ids": ids,
            "prompt_logprobs": [None, *({str(one["token_id"]): one} for one in found)]
            if is_scored
            else None,
            "choices": [
                {
                    "token_ids": turn,
                    "logprobs": {"content": of_turn},
                    "finish_reason": "stop"
                    if turn[-1] in body["sampling_params"].get("stop_token_ids", ())
                    else "length",
                }
            ],
        }
