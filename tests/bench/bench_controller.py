"""What a turn costs the controller, in CPU time, with 512 rollouts under way.

    python tests/bench/bench_controller.py [--rollouts 512] [--nodes 0] [--prompt-tokens 300]

A rollout has three turns. Its prompt has about 300 tokens; a turn samples 30, which are a tool
call, and the tool's answer is about 50 with the template's text around it. The server is the tests'
small HTTP server in another process, the tool runs in a worker process; what is counted is the
CPU time of all threads of this process, from prompts to journal, in a second step after a first one
that opened connections. Bound: 2 ms a turn, and LOOP_PAUSE_S for which the event loop does nothing
else. Exits 1 above them, or where the journal does not hold every rollout. What a plain loop costs
is printed beside it: a core that others slow down is slow for both.

With --nodes 64 --rollouts 8192 the servers are on as many machines of a cluster: real keepers of a
real Ray, each of which passes requests on for many of the nodes to the one server.
"""

import argparse
import asyncio
import cProfile
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from rows import row

from rnow.chat.template import ChatTemplate
from rnow.cluster.keeper import Keeper
from rnow.cluster.node import KeptClient, Node, SharedFiles
from rnow.engines.vllm.engine import VllmEngine
from rnow.engines.vllm.http import VllmClient
from rnow.plan.nodes import Machine
from rnow.records import Batch
from rnow.runtime.garbage import rare_collections
from rnow.runtime.main_task import run_main

sys.path.insert(0, str(Path(__file__).parents[1]))
from rolling import NUM_TURNS, STUDENT, Rolling, calling_ids, instant_tools, make_prompts
from vllm_fake import Json, logprob_of, serve_fake

BOUND_MS = 2.0
LOOP_PAUSE_S = 5.0  # a tenth of what makes a heartbeat write its stacks down, with room for a core
NUM_WARMING = 512  # rollouts of the first step at most
NUM_KEEPERS = 2
SAMPLED_TOKENS = 30


async def serve() -> None:
    """Answer every generation with a tool call, until this process is ended."""
    sampled = calling_ids(ChatTemplate.load(str(STUDENT)), SAMPLED_TOKENS)

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
    ray.init(address="local", num_cpus=NUM_KEEPERS, include_dashboard=False, log_to_driver=False)
    passing = ray.remote(PassingKeeper).options(max_concurrency=10_000)
    keepers = [passing.remote(url, num_nodes) for _ in range(NUM_KEEPERS)]
    machine = Machine(id="", host="node", address="", cores=1, gpus=(), own={}, served={})
    nodes = [
        Node(
            machine=replace(machine, id=f"{number:08}"),
            keeper=keepers[number % NUM_KEEPERS],
            files=SharedFiles(),
            place=None,
        )
        for number in range(num_nodes)
    ]
    return [KeptClient(node, str(place), f"ray://{place}") for place, node in enumerate(nodes)]


@dataclass
class Pause:
    """The longest time for which an event loop did not come to what was due."""

    longest_s: float = 0.0


@asynccontextmanager
async def longest_pause() -> AsyncIterator[Pause]:
    pause = Pause()

    async def tick() -> None:
        while True:
            due = time.perf_counter() + 0.01
            await asyncio.sleep(0.01)
            pause.longest_s = max(pause.longest_s, time.perf_counter() - due)

    ticking = asyncio.create_task(tick())
    try:
        yield pause
    finally:
        ticking.cancel()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a step took, and what it made."""

    ms: float  # CPU time a turn
    wall_s: float
    pause_s: float
    gib: float  # of this process at most
    batch: Batch
    journal: bytes


async def measure(
    url: str, *, num_rollouts: int, num_nodes: int, prompt_tokens: int, profile: Path | None
) -> Measured:
    chat = ChatTemplate.load(str(STUDENT))
    group_size = 4
    engine = VllmEngine([url], request_timeout_s=600)
    if num_nodes:
        engine = VllmEngine((), clients=clients_on_nodes(url, num_nodes), request_timeout_s=600)
    with tempfile.TemporaryDirectory() as name:
        async with instant_tools(Path(name)) as tools:
            num_prompts = num_rollouts // group_size
            prompts = make_prompts(chat, tools, num_prompts, num_tokens=prompt_tokens)
            rolling = Rolling(engine, chat, tools, Path(name), max_tokens=SAMPLED_TOKENS)
            await rolling.step(prompts[: NUM_WARMING // group_size], group_size=group_size)
            profiler = cProfile.Profile() if profile else None
            started, wall = time.process_time(), time.perf_counter()
            if profiler is not None:
                profiler.enable()
            async with longest_pause() as pause:
                with rare_collections():  # as in a run
                    batch = await rolling.step(prompts, group_size=group_size)
            if profiler is not None and profile is not None:
                profiler.disable()
                profiler.dump_stats(profile)
            seconds, wall_s = time.process_time() - started, time.perf_counter() - wall
            journal = rolling.journal.read_bytes()
    await engine.aclose()
    return Measured(
        ms=seconds * 1e3 / (num_rollouts * NUM_TURNS),
        wall_s=wall_s,
        pause_s=pause.longest_s,
        gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        batch=batch,
        journal=journal,
    )


def loop_seconds() -> float:
    started, total = time.process_time(), 0
    for number in range(10_000_000):
        total += number
    return time.process_time() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=512)
    parser.add_argument("--nodes", type=int, default=0)
    parser.add_argument("--prompt-tokens", type=int, default=300)
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
            measured = run_main(
                measure(
                    url,
                    num_rollouts=arguments.rollouts,
                    num_nodes=arguments.nodes,
                    prompt_tokens=arguments.prompt_tokens,
                    profile=arguments.profile,
                )
            )
        finally:
            server.kill()
    return show(measured, arguments.rollouts)


def show(measured: Measured, num_rollouts: int) -> int:
    """Print what was measured; return 1 where a bound is broken."""
    first = measured.batch.scored[0].trajectory
    starts = [turn.start for turn in first.turns]
    between = [later - turn.end for later, turn in zip(starts[1:], first.turns, strict=False)]
    print(f"prompt {starts[0]}, sampled {first.num_actions // NUM_TURNS} a turn, tools {between}")
    rate = num_rollouts * NUM_TURNS / measured.wall_s
    num_lines = measured.journal.count(b"\n")
    print(
        f"{measured.wall_s:.1f} s, {rate:.0f} turns a second; at most {measured.gib:.2f} GiB; "
        f"{num_lines} rollouts in a journal of {len(measured.journal) / 1e6:.1f} MB"
    )
    name = f"{num_rollouts} rollouts"
    beside = f"a loop of 10 million additions {loop_seconds():.2f} s"
    held = [
        row(f"a turn, {name}", measured.ms, "ms of CPU", most=BOUND_MS, beside=beside),
        row(f"the loop stood still, {name}", measured.pause_s, "s", most=LOOP_PAUSE_S),
        row(f"in the journal, {name}", num_lines, "", least=num_rollouts, most=num_rollouts),
    ]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
