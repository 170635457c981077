"""A small real HTTP server that answers as vLLM does, and wrongly where a test says so.

The log-probability of a token is -(id + position) / 100, whichever model is asked. It counts down
the ids that it samples: after 5 come 4, 3, 2, 1, 0, 0, …
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from threading import Thread
from typing import Any

from aiohttp import web

Json = dict[str, Any]
MODEL = "base"


def logprob_of(position: int, token: int) -> float:
    return -(token + position) / 100


class FakeVllm:
    """One server; `change` alters the answers of the token route, `fault` comes before them."""

    def __init__(self, model: str = MODEL) -> None:
        self.model = model
        self.url = ""
        self.max_model_len = 100
        self.requests: list[tuple[str, Json]] = []
        self.adapters: dict[str, str] = {}
        # Tokens of each generation, which ends by an abort alone; None: it ends by itself.
        self.sampled_by_then: int | None = None
        self.aborted: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.can_abort = True
        self.adapter_shift = 0.0  # of the log-probabilities of every adapter
        self.skips_adapter = False  # where tokens are sampled
        self.num_looks = 0  # at an adapter's folder before it is visible
        self.change: Callable[[Json], None] = lambda answer: None
        self.fault: Callable[[], web.Response | None] = lambda: None
        self.hangs = False
        self.empties_cache = True
        self.has_dev_routes = True
        self.gate: Callable[[], Awaitable[None]] | None = None  # awaited by the token route
        self.compact: Callable[[Json], str | None] | None = None  # encodes the array
        self.ignores_compact = False  # it does not know of it, and takes it for nothing

    def bodies(self, route: str) -> list[Json]:
        return [body for path, body in self.requests if path == route]

    def note(self, path: str, body: Json) -> None:
        """Remember a request as it comes."""
        self.requests.append((path, body))

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.json() if request.body_exists else {}
        self.note(request.path, body)
        if self.hangs:
            await asyncio.Event().wait()
        if request.method == "GET" and self.is_for_post(request.path):
            return web.json_response({"detail": "Method Not Allowed"}, status=405)
        match request.path:
            case "/health":
                return web.Response()
            case "/v1/models":
                return web.json_response(
                    {
                        "data": [
                            {"id": self.model, "parent": None, "max_model_len": self.max_model_len},
                            *({"id": name, "parent": self.model} for name in self.adapters),
                        ]
                    }
                )
            case "/inference/v1/abort_requests" if self.can_abort:
                for name in body["request_ids"]:
                    self.aborted[name.removeprefix("generate-tokens-")].set()
                return web.Response()
            case "/inference/v1/generate" if self.sampled_by_then is not None:
                await self.aborted[body["request_id"]].wait()
                return self.generate(body)
            case "/inference/v1/generate":
                if self.gate is not None:
                    await self.gate()
                return self.fault() or self.generate(body)
            case "/v1/load_lora_adapter":
                self.num_looks -= 1
                if self.num_looks >= 0:
                    name, path = body["lora_name"], body["lora_path"]
                    return error(404, f"Loading lora {name} failed: No adapter found for {path}")
                self.adapters[body["lora_name"]] = body["lora_path"]
                return web.Response(text="Success")
            case "/v1/unload_lora_adapter":
                del self.adapters[body["lora_name"]]
                return web.Response(text="Success")
            case "/collective_rpc" if self.has_dev_routes:
                return web.json_response({"results": [None]})
            case "/reset_prefix_cache" if self.has_dev_routes:
                return web.json_response({"success": self.empties_cache})
        return web.json_response({"detail": "Not Found"}, status=404)

    def is_for_post(self, path: str) -> bool:
        weights = self.has_dev_routes and path in ("/collective_rpc", "/v1/load_lora_adapter")
        return path == "/inference/v1/generate" or weights

    def generate(self, body: Json) -> web.Response:
        if body["model"] not in (self.model, *self.adapters):
            return error(404, f"The model `{body['model']}` does not exist.")
        asked = body["sampling_params"]
        ids = body["token_ids"]
        answer: Json = {
            "model": body["model"],
            "prompt_token_ids": ids if body.get("return_token_ids") else None,
            "prompt_logprobs": None,
            **({} if self.compact is None else {"prompt_token_id_logprobs": None}),
            "choices": [_choice(ids, asked)],
        }
        if self.sampled_by_then is not None:
            _cut(answer["choices"][0], self.sampled_by_then)
        if "prompt_logprob_token_ids" in asked and not self.ignores_compact:
            if self.compact is None:
                return error(400, "prompt_logprob_token_ids requires the V2 model runner")
            answer["prompt_token_id_logprobs"] = self.compact(asked)
        if "prompt_logprobs" in asked:
            answer["prompt_logprobs"] = [
                None,
                *(_scored(place, ids[place], asked) for place in range(1, len(ids))),
            ]
        if body["model"] in self.adapters:
            shift_scored(answer, self.adapter_shift)
            shift_sampled(answer, 0.0 if self.skips_adapter else self.adapter_shift)
        self.change(answer)
        return web.Response(text=json.dumps(answer), content_type="application/json")


def shift_scored(answer: Json, by: float) -> None:
    for entry in (answer["prompt_logprobs"] or [])[1:]:
        for value in entry.values():
            value["logprob"] += by


def shift_sampled(answer: Json, by: float) -> None:
    for entry in answer["choices"][0]["logprobs"]["content"]:
        entry["logprob"] += by


def error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


def _choice(ids: list[int], asked: Json) -> Json:
    sampled: list[int] = []
    while len(sampled) < asked["max_tokens"]:
        sampled.append(max((sampled or ids)[-1] - 1, 0))
        if sampled[-1] in asked.get("stop_token_ids", ()):
            break
    is_stop = sampled[-1] in asked.get("stop_token_ids", ())
    content = [
        {"token_id": token, "logprob": logprob_of(len(ids) + place, token), "rank": 1}
        for place, token in enumerate(sampled)
    ]
    return {
        "token_ids": sampled,
        "logprobs": {"content": content},
        "finish_reason": "stop" if is_stop else "length",
    }


def _cut(choice: Json, num: int) -> None:
    choice["token_ids"] = choice["token_ids"][:num]
    choice["logprobs"]["content"] = choice["logprobs"]["content"][:num]
    choice["finish_reason"] = "abort"


def _scored(position: int, token: int, asked: Json) -> Json:
    """The token itself at rank 9, and the favourites 50, 51, … at -0.1, -0.2, …"""
    given = {str(token): {"logprob": logprob_of(position, token), "rank": 9}}
    for rank in range(1, asked["prompt_logprobs"] + 1):
        given[str(49 + rank)] = {"logprob": -rank / 10, "rank": rank}
    return given


@asynccontextmanager
async def serve_fake(fake: FakeVllm | None = None) -> AsyncIterator[FakeVllm]:
    fake = fake or FakeVllm()
    runner = web.ServerRunner(web.Server(fake.answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()


@contextmanager
def serve_beside(fake: FakeVllm | None = None) -> Iterator[FakeVllm]:
    """Serve in a thread, for what has an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    serving = serve_fake(fake)
    try:
        yield asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(serving.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
