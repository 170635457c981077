"""What a turn costs the controller, in CPU time, with 512 rollouts under way.

    python tests/bench/bench_controller.py [--rollouts 512] [--nodes 0] [--profile FILE]

A rollout has three turns. Its prompt has about 300 tokens; a turn samples 30, which are a tool
call, and the tool's answer is about 50 with the template's text around it. The server is the tests'
small HTTP server in another process, the tool runs in a worker process; what is counted is the
CPU time of all threads of this process, from prompts to journal, in a second step after a first one
that opened connections. Bound: 2 ms a turn. Exits 1 above it. What a plain loop costs is printed
beside it: a core that others slow down is slow for both.

With --nodes 64 --rollouts 8192 the servers are on as many machines of a cluster: real keepers of a
real Ray, each of which passes requests on for many of the nodes to the one server.
"""

import argparse
import asyncio
import cProfile
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import ray
from rolling import NUM_TURNS, TOOL_NAME, Rolling, instant_tools, make_prompts
from rows import row

from rnow.chat.template import ChatTemplate
from rnow.cluster.keeper import Keeper, Machine
from rnow.cluster.node import KeptClient, Node, SharedFiles
from rnow.engines.vllm.engine import VllmEngine
from rnow.engines.vllm.http import VllmClient
from rnow.records import Batch
from rnow.runtime.garbage import rare_collections

sys.path.insert(0, str(Path(__file__).parents[1]))
from vllm_fake import Json, logprob_of, serve_fake

BOUND_MS = 2.0
NUM_KEEPERS = 2
PROMPT_TOKENS, SAMPLED_TOKENS = 300, 30
STUDENT = resources.files("rnow") / "templates" / "clinic" / "models" / "student"


def calling_ids(chat: ChatTemplate) -> list[int]:
    """Return a turn of SAMPLED_TOKENS that calls the tool, its end of turn included."""
    for num_digits in range(1, SAMPLED_TOKENS):
        call = f'{{"name": "{TOOL_NAME}", "arguments": {{"key": "{"7" * num_digits}"}}}}'
        ids = [*chat.encode(f"<tool_call>\n{call}\n</tool_call>"), chat.end_of_turn_id]
        if len(ids) == SAMPLED_TOKENS:
            return ids
    raise AssertionError(f"no call has {SAMPLED_TOKENS} tokens")


async def serve() -> None:
    """Answer every generation with a tool call, until this process is ended."""
    sampled = calling_ids(ChatTemplate.load(str(STUDENT)))

    def call_a_tool(answer: Json) -> None:
        (choice,) = answer["choices"]
        start = len(answer["prompt_token_ids"])
        choice["token_ids"] = sampled
        choice["finish_reason"] = "stop"
        choice["logprobs"]["content"] = [
            {"token_id": token, "logprob": logprob_of(start + place, token), "rank": 1}
            for place, token in enumerate(sampled)
        ]

    async with serve_fake() as fake:
        fake.change = call_a_tool
        fake.max_model_len = 1024
        print(fake.url, flush=True)
        await asyncio.Event().wait()


class PassingKeeper(Keeper):
    """A keeper whose servers are all the one at `url`."""

    def __init__(self, url: str, num_servers: int) -> None:
        super().__init__()
        self._clients = {str(number): VllmClient(url) for number in range(num_servers)}


def clients_on_nodes(url: str, num_nodes: int) -> list[VllmClient]:
    """Return a client for the server of each node; NUM_KEEPERS keepers stand for all nodes."""
    ray.init(num_cpus=NUM_KEEPERS, include_dashboard=False, log_to_driver=False)
    passing = ray.remote(PassingKeeper).options(max_concurrency=10_000)
    keepers = [passing.remote(url, num_nodes) for _ in range(NUM_KEEPERS)]
    machine = Machine(host="node", python="", rnow="", gpus=())
    nodes = [
        Node(
            id=f"{number:08}",
            machine=machine,
            keeper=keepers[number % NUM_KEEPERS],
            files=SharedFiles(),
        )
        for number in range(num_nodes)
    ]
    return [KeptClient(node, str(place), f"ray://{place}") for place, node in enumerate(nodes)]


async def measure(
    url: str, *, num_rollouts: int, num_nodes: int, profile: Path | None
) -> tuple[float, Batch]:
    """Return CPU milliseconds a turn, and what was rolled out."""
    chat = ChatTemplate.load(str(STUDENT))
    group_size = 4
    engine = VllmEngine([url])
    if num_nodes:
        engine = VllmEngine((), clients=clients_on_nodes(url, num_nodes))
    with tempfile.TemporaryDirectory() as name:
        async with instant_tools(Path(name)) as tools:
            num_prompts = num_rollouts // group_size
            prompts = make_prompts(chat, tools, num_prompts, num_tokens=PROMPT_TOKENS)
            rolling = Rolling(engine, chat, tools, Path(name), max_tokens=SAMPLED_TOKENS)
            await rolling.step(prompts, group_size=group_size)
            profiler = cProfile.Profile() if profile else None
            started, wall = time.process_time(), time.perf_counter()
            if profiler is not None:
                profiler.enable()
            with rare_collections():  # as in a run
                batch = await rolling.step(prompts, group_size=group_size)
            if profiler is not None and profile is not None:
                profiler.disable()
                profiler.dump_stats(profile)
            seconds = time.process_time() - started
            print(f"{time.perf_counter() - wall:.2f} s of wall time", file=sys.stderr)
    await engine.aclose()
    return seconds * 1e3 / (num_rollouts * NUM_TURNS), batch


def loop_seconds() -> float:
    started, total = time.process_time(), 0
    for number in range(10_000_000):
        total += number
    return time.process_time() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rollouts", type=int, default=512)
    parser.add_argument("--nodes", type=int, default=0)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
    server: subprocess.Popen[Any]
    words = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip()
            ms, batch = asyncio.run(
                measure(
                    url,
                    num_rollouts=arguments.rollouts,
                    num_nodes=arguments.nodes,
                    profile=arguments.profile,
                )
            )
        finally:
            server.kill()
    first = batch.scored[0].trajectory
    starts = [turn.start for turn in first.turns]
    between = [later - turn.end for later, turn in zip(starts[1:], first.turns, strict=False)]
    print(f"prompt {starts[0]}, sampled {first.num_actions // NUM_TURNS} a turn, tools {between}")
    beside = f"a loop of 10 million additions {loop_seconds():.2f} s"
    name = f"a turn, {arguments.rollouts} rollouts"
    return int(not row(name, ms, "ms of CPU", most=BOUND_MS, beside=beside))


if __name__ == "__main__":
    sys.exit(main())
