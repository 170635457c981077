"""A step of many rollouts on many servers; all is real but what the servers answer."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
from rolling import NUM_TURNS, STUDENT, Rolling, calling_ids, instant_tools, make_prompts

from rnow.chat.template import ChatTemplate
from rnow.engines.vllm.engine import VllmEngine
from rnow.engines.vllm.http import VllmClient
from rnow.runs.journal import read_journal, scored_to_json

NUM_SERVERS, NUM_PROMPTS, GROUP_SIZE = 64, 16, 8
NUM_SAMPLED = 30
PER_SERVER = NUM_PROMPTS * GROUP_SIZE // NUM_SERVERS


class AllAtOnce:
    """Opens when every rollout has asked for its first turn."""

    def __init__(self) -> None:
        self._num_asked = 0
        self._opened = asyncio.Event()

    async def passed(self) -> None:
        self._num_asked += 1
        if self._num_asked == NUM_PROMPTS * GROUP_SIZE:
            self._opened.set()
        await self._opened.wait()


class CallingClient(VllmClient):
    """Reaches no server: each of its answers calls the tool."""

    def __init__(self, number: int, sampled: list[int], all_at_once: AllAtOnce) -> None:
        super().__init__(f"ray://{number}")
        self.requests: list[dict[str, Any]] = []
        self._sampled = sampled
        self._all_at_once = all_at_once

    async def exchange(self, method: str, route: str, body: bytes | None) -> tuple[int, bytes]:
        if body is None:
            models = {"data": [{"id": "base", "parent": None, "max_model_len": 1024}]}
            return 200, orjson.dumps(models)
        asked = orjson.loads(body)
        self.requests.append(asked)
        await self._all_at_once.passed()
        content = [{"token_id": token, "logprob": -0.5, "rank": 1} for token in self._sampled]
        choice = {"token_ids": self._sampled, "finish_reason": "stop"}
        answer = {
            "model": "base",
            "prompt_token_ids": asked["token_ids"],
            "choices": [{**choice, "logprobs": {"content": content}}],
        }
        return 200, orjson.dumps(answer)


async def test_rollouts_spread_over_64_servers_and_each_stays_at_its_own(tmp_path: Path) -> None:
    chat = ChatTemplate.load(str(STUDENT))
    sampled, all_at_once = calling_ids(chat, NUM_SAMPLED), AllAtOnce()
    clients = [CallingClient(number, sampled, all_at_once) for number in range(NUM_SERVERS)]
    async with instant_tools(tmp_path) as tools:
        prompts = make_prompts(chat, tools, NUM_PROMPTS, num_tokens=300)
        engine = VllmEngine((), clients=clients, request_timeout_s=600)
        rolling = Rolling(engine, chat, tools, tmp_path, max_tokens=NUM_SAMPLED)
        batch = await rolling.step(prompts, group_size=GROUP_SIZE)
    assert [len(client.requests) for client in clients] == [PER_SERVER * NUM_TURNS] * NUM_SERVERS
    names = {asked["request_id"] for client in clients for asked in client.requests}
    assert len(names) == NUM_PROMPTS * GROUP_SIZE * NUM_TURNS
    assert {item.trajectory.num_actions for item in batch.scored} == {NUM_SAMPLED * NUM_TURNS}
    written = read_journal(rolling.journal, policy_version=0)
    assert [*map(scored_to_json, written)] == [*map(scored_to_json, batch.scored)]
