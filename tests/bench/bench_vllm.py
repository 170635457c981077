"""Sampled tokens a second through rnow's multi-turn loop, against the same server driven directly.

    python tests/bench/bench_vllm.py [--python .venv-vllm/bin/python] [--rollouts 16] [--rounds 3]
    python tests/bench/bench_vllm.py --cuda --rollouts 128

A model of 100 M parameters with random weights (Qwen3's architecture, the clinic's tokenizer and
template) on vLLM on the CPU, or in bfloat16 on the first GPU. A rollout has three turns: a prompt
of about 200 tokens, 24 sampled tokens a turn, which count as a tool call whatever they are, and
about 50 of an instant tool's text.
The direct driver posts the very same prompts and bridges, with the same seeds and lengths, turn by
turn, all rollouts at the same time, and reads nothing of the answers but the ids.

Loop and driver take turns on one server, its prefix cache emptied before each pass. Other work on
the machine only ever adds time, so the best pass of each counts. Bound 0.95; exits 1 below it.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import aiohttp
from rows import row

from rnow.chat.template import ChatTemplate
from rnow.engines.vllm.command import VllmServerSettings, served_name
from rnow.engines.vllm.engine import VllmEngine
from rnow.engines.vllm.server import VllmServer
from rnow.records import Batch, Trajectory, derive_seed
from rnow.tools.base import ToolCall

sys.path.insert(0, str(Path(__file__).parents[1]))
from builders import qwen3
from rolling import NUM_TURNS, TOOL_NAME, Rolling, instant_tools, make_prompts

BOUND = 0.95
PROMPT_TOKENS, SAMPLED_TOKENS, GROUP_SIZE = 200, 24, 4
STUDENT = resources.files("rnow") / "templates" / "clinic" / "models" / "student"
ROOT = Path(__file__).parents[2]


class CallingTemplate(ChatTemplate):
    """Reads a call out of every turn: random weights write none. No token stops a generation."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.stop_token_ids = ()

    def parse_calls(self, token_ids: Sequence[int], **options: Any) -> tuple[ToolCall, ...]:
        super().parse_calls(token_ids, **options)
        return (ToolCall(name=TOOL_NAME, arguments={"key": "drug"}, raw=""),)


def save_model(folder: Path) -> int:
    """Save a model with random weights and the clinic's words; return its number of parameters."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(STUDENT))
    network = qwen3(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=2560,
        num_hidden_layers=13,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        initializer_range=0.02,
    )
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(sum(weights.numel() for weights in network.parameters()))


def session_to(url: str) -> aiohttp.ClientSession:
    connector = aiohttp.UnixConnector(path=url.removeprefix("unix:"), limit=0)
    return aiohttp.ClientSession("http://localhost", connector=connector)


async def drive(url: str, model: str, batch: Batch) -> None:
    """Have the server sample what the batch's rollouts sampled, without rnow in between."""
    async with session_to(url) as session:
        await asyncio.gather(
            *(drive_one(session, model, scored.trajectory) for scored in batch.scored)
        )


async def drive_one(session: aiohttp.ClientSession, model: str, trajectory: Trajectory) -> None:
    given = trajectory.token_ids.tolist()
    ids = given[: trajectory.turns[0].start]
    for number, turn in enumerate(trajectory.turns):
        asked = {
            "max_tokens": turn.end - turn.start,
            "temperature": 1.0,
            "seed": derive_seed(
                0, "sample", 0, trajectory.id.prompt, trajectory.id.rollout, number
            ),
            "logprobs": 0,
            "ignore_eos": True,
            "detokenize": False,
        }
        body = {"model": model, "token_ids": ids, "sampling_params": asked}
        async with session.post("/inference/v1/generate", json=body) as response:
            sampled = (await response.json())["choices"][0]["token_ids"]
        assert len(sampled) == turn.end - turn.start
        is_last = number == len(trajectory.turns) - 1
        bridge = [] if is_last else given[turn.end : trajectory.turns[number + 1].start]
        ids = [*ids, *sampled, *bridge]


async def empty_cache(url: str) -> None:
    async with (
        session_to(url) as session,
        session.post("/reset_prefix_cache") as response,
    ):
        assert response.status == 200


async def measure(
    folder: Path, python: str, *, on_cuda: bool, num_rollouts: int, rounds: int
) -> bool:
    """Print the seconds of each pass; compare tokens a second of loop and driver."""
    num_parameters = save_model(folder / "model")
    settings = VllmServerSettings(
        role="student",
        model=folder / "model",
        log_file=folder / "student.log",
        max_model_len=1024,
        python=python,
        dtype="bfloat16" if on_cuda else "float32",
        deterministic=False,
        start_timeout_s=900.0,
        devices={"CUDA_VISIBLE_DEVICES": "0"} if on_cuda else {},
        gpu_memory_utilization=0.2,
    )
    server = await VllmServer.start(settings)
    engine = VllmEngine(
        [server.url], request_timeout_s=600, why_ended=lambda url: server.why_ended()
    )
    num_tokens = num_rollouts * NUM_TURNS * SAMPLED_TOKENS
    print(f"{num_parameters / 1e6:.0f} M parameters, {num_rollouts} rollouts, {num_tokens} tokens")
    loop_s, direct_s = [], []
    try:
        async with instant_tools(folder) as tools:
            chat = CallingTemplate.load(folder / "model", reasoning_mode="none")
            prompts = make_prompts(
                chat, tools, num_rollouts // GROUP_SIZE, num_tokens=PROMPT_TOKENS
            )
            rolling = Rolling(engine, chat, tools, folder, max_tokens=SAMPLED_TOKENS)
            await rolling.step(prompts[:1], group_size=GROUP_SIZE)  # opens, compiles
            for _ in range(rounds):
                await empty_cache(server.url)
                started = time.perf_counter()
                batch = await rolling.step(prompts, group_size=GROUP_SIZE)
                loop_s.append(time.perf_counter() - started)
                assert batch.num_actions == num_tokens
                await empty_cache(server.url)
                started = time.perf_counter()
                await drive(server.url, served_name(settings, server.socket), batch)
                direct_s.append(time.perf_counter() - started)
                print(f"loop {loop_s[-1]:.2f} s, driven directly {direct_s[-1]:.2f} s", flush=True)
    finally:
        await engine.aclose()
        await server.stop()
    ours, direct = num_tokens / min(loop_s), num_tokens / min(direct_s)
    return row(
        "tokens/s of the loop / vLLM driven directly",
        ours / direct,
        "",
        least=BOUND,
        beside=f"{ours:.0f} tokens/s, vLLM itself {direct:.0f}",
        note="Who drives vLLM directly knows every prompt, and reads nothing but the ids.",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=str(ROOT / ".venv-vllm" / "bin" / "python"))
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cuda", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        holds = asyncio.run(
            measure(
                Path(folder),
                arguments.python,
                on_cuda=arguments.cuda,
                num_rollouts=arguments.rollouts,
                rounds=arguments.rounds,
            )
        )
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
