"""Speed of `LocalEngine`: rollouts against transformers' own generate, then the demo's model alone.

    python tests/bench/bench_local_engine.py [--rollouts 64] [--rows 32] [--threads N] [--rounds 5]

Against generate: a random model of SmolLM2-135M's shape, 8 prompts of 64 tokens, 48 sampled from
each, in turn with generate of the same batch; the best of several rounds counts. Exit code 1 where
rollouts take more than 1.5 × its time. generate keeps no log-probabilities and no bits.

Alone: tokens a second and milliseconds a step on a model of the demo's size.
A rollout has three turns: a prompt of 150 tokens shared by a group of four, then twice 50 tokens of
tool text; each turn samples 33 tokens. Then every trajectory is scored by a second engine, as the
teacher would.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import torch
from rows import row
from transformers import LlamaConfig, LlamaForCausalLM

from rnow.engines.base import SampleRequest, ScoreRequest
from rnow.engines.local.batch import DecodingBatch, DecodingRow, read
from rnow.engines.local.engine import LocalEngine
from rnow.engines.local.sampling import uniform_stream

sys.path.insert(0, str(Path(__file__).parents[1]))
from builders import qwen3

NUM_TURNS, PROMPT_TOKENS, TOOL_TOKENS, SAMPLED_TOKENS = 3, 150, 50, 33


BOUND = 1.5


def make_smollm2(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


async def against_generate(*, rows: int, rounds: int) -> bool:
    """Compare the time of rollouts with that of generate; say whether the bound holds."""
    prompts = torch.randint(0, 49_152, (8, 64), generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as name:
        make_smollm2(Path(name))
        engine = LocalEngine(Path(name), rows=rows, request_timeout_s=600)
        plain = LlamaForCausalLM.from_pretrained(name, dtype=torch.float32)
    plain.generation_config.eos_token_id = None

    async def rollouts(number: int) -> None:
        requests = [
            SampleRequest(
                token_ids=tuple(ids),
                session=f"{number}.{index}",
                max_tokens=48,
                stop_token_ids=(),
                seed=index,
                policy_version=0,
            )
            # Others in each round: a prompt that was read before would not be read again.
            for index, ids in enumerate(((prompts + number) % 49_152).tolist())
        ]
        await asyncio.gather(*(engine.sample(request) for request in requests))
        await asyncio.gather(*(engine.release(request.session) for request in requests))

    times: list[tuple[float, float]] = []
    for number in range(rounds):
        begin = time.perf_counter()
        await rollouts(number)
        between = time.perf_counter()
        plain.generate(prompts, max_new_tokens=48, do_sample=True, pad_token_id=0)
        times.append((between - begin, time.perf_counter() - between))
    await engine.aclose()
    ours, theirs = (min(column) for column in zip(*times, strict=True))
    return row(
        "rollouts / generate",
        ours / theirs,
        "",
        most=BOUND,
        beside=f"8 × 48 tokens in {ours:.2f} s, transformers' generate {theirs:.2f} s",
        note="generate keeps no log-probabilities, and its bits depend on the batch.",
    )


def make_model(folder: str) -> None:
    network = qwen3(
        vocab_size=1024,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.02,
    )
    network.save_pretrained(folder)


async def roll_out(engine: LocalEngine, index: int) -> list[int]:
    ids = [(index // 4 * 31 + k * 7) % 1024 for k in range(PROMPT_TOKENS)]
    for turn in range(NUM_TURNS):
        completion = await engine.sample(
            SampleRequest(
                token_ids=tuple(ids),
                session=str(index),
                max_tokens=SAMPLED_TOKENS,
                stop_token_ids=(),
                seed=index * 100 + turn,
                policy_version=0,
            )
        )
        ids += completion.token_ids.tolist()
        if turn < NUM_TURNS - 1:
            ids += [(index * 17 + turn + k) % 1024 for k in range(TOOL_TOKENS)]
    await engine.release(str(index))
    return ids


async def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    holds = await against_generate(rows=options.rows, rounds=options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder)
        engine = LocalEngine(Path(folder), rows=options.rows, request_timeout_s=600)
        teacher = LocalEngine(Path(folder), request_timeout_s=600)
    print(f"{options.threads} threads, {options.rows} rows, {options.rollouts} rollouts")
    for attempt in range(3):
        begin = time.perf_counter()
        tasks = [roll_out(engine, index) for index in range(options.rollouts)]
        trajectories = await asyncio.gather(*tasks)
        seconds = time.perf_counter() - begin
        num_sampled = options.rollouts * NUM_TURNS * SAMPLED_TOKENS
        num_tokens = sum(len(ids) for ids in trajectories)
        print(
            f"rollouts {attempt}: {seconds:.2f} s, {num_sampled / seconds:.0f} sampled tokens/s, "
            f"{num_tokens / seconds:.0f} tokens/s with the text read"
        )
    begin = time.perf_counter()
    requests = [ScoreRequest(token_ids=tuple(ids), start=PROMPT_TOKENS) for ids in trajectories]
    await asyncio.gather(*(teacher.score(request) for request in requests))
    seconds = time.perf_counter() - begin
    print(f"scoring: {seconds:.2f} s, {seconds / options.rollouts * 1e3:.2f} ms a trajectory")
    time_steps(engine, options.rows)
    await asyncio.gather(engine.aclose(), teacher.aclose())
    return int(not holds)


@torch.inference_mode()
def time_steps(engine: LocalEngine, num_rows: int) -> None:
    """Time bare decoding steps of a full batch; the median shows what else the machine does."""
    for length in (150, 300, 600):
        key_values, _ = read(engine.model, list(range(length)), ())
        batch = DecodingBatch(engine.model, (num_rows,))
        for index in range(num_rows):
            row = DecodingRow(
                length=length, uniforms=uniform_stream(index), temperature=1.0, token_ids=[1]
            )
            batch.add(row, key_values)
        times = []
        for _ in range(60):
            begin = time.perf_counter()
            batch.step()
            times.append((time.perf_counter() - begin) * 1e3)
        times.sort()
        print(f"step at {length} tokens a row: {times[0]:.2f} ms least, {times[30]:.2f} ms median")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
