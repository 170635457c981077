"""vLLM on one GPU beside the local engine there, and the demo with both roles on it.

    python tests/bench/gpu_vllm.py --python vllm/bin/python [--only bfloat16 float32 demo …]
                                   [--set engine.args.enforce-eager=true] [--cpu]

`bfloat16` and `float32`: a server has the clinic's student and is given three adapters and a whole
model, one after the other; after each, scores and samples are compared with the local engine's on
the same GPU. `demo`: `rnow demo --engine vllm`, trainer and two servers on one GPU as the plan has
it, with what `--set` says of config.yml. The others, each with the clinic's student in bfloat16 and
CUDA graphs:

    decode         the probe that samples, before and after an adapter: it would see one left out
    precision      the trainer beside servers whose LM head is in bfloat16, and in float32
    deterministic  batch-invariant kernels: the same bits alone, together, after a kill; their cost
    compact        compact scoring is there, and gives the numbers of the long way
    cut            a generation cut at its deadline keeps the first of its tokens
    servers        the trainer's allocator reaches no server; how long a start without graphs takes

Prints a line a claim; exits 1 if one does not hold, 2 where there is no CUDA device. `--cpu`: these
parts on vLLM's build for CPUs, which shows that the script works and nothing of GPUs.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from builders import load_policy
from gpu_smoke import Claims, metrics, rnow
from vllm_pair import make_ids, open_pair, save_adapter, save_model, scoring_of
from vllm_real import copy_model, server_settings

from rnow.engines.base import Completion, SampleRequest
from rnow.engines.vllm.engine import VllmEngine
from rnow.engines.vllm.server import VllmServer
from rnow.learner.policy import Policy
from rnow.plan.devices import find_devices, usable_gpus
from rnow.records import FloatArray
from rnow.runtime.own_variables import set_for_this_process

MEAN_TOLERANCE = {"bfloat16": 0.02, "float32": 1e-3}  # nats a token
MAX_MISMATCH_KL = 0.01
MIN_AFTER = 0.9


class Part(Protocol):
    """What is tried and claimed on servers of its own."""

    async def __call__(self, claims: Claims, folder: Path, *, cpu: bool) -> None: ...


def on(cpu: bool) -> dict[str, Any]:
    """Settings of a server on the GPU, or on the CPU."""
    if cpu:
        return {}
    return {"devices": {"CUDA_VISIBLE_DEVICES": "0"}, "gpu_memory_utilization": 0.1}


@asynccontextmanager
async def serving(folder: Path, *, cpu: bool, **fields: Any) -> AsyncIterator[VllmServer]:
    model = (
        copy_model("student", folder) if not (folder / "student").exists() else folder / "student"
    )
    chosen = {"dtype": "bfloat16", "max_lora_rank": 32, **on(cpu), **fields}
    server = await VllmServer.start(server_settings(model, folder / "log", **chosen))
    try:
        yield server
    finally:
        await server.stop()


def sampling(seed: int, *, num_tokens: int = 60, version: int = 0) -> SampleRequest:
    return SampleRequest(
        token_ids=tuple(make_ids(40 + seed)),
        session=f"s{seed}",
        max_tokens=num_tokens,
        stop_token_ids=(),
        seed=seed,
        policy_version=version,
    )


def logprobs_of(policy: Policy, completion: Completion) -> FloatArray:
    """What the trainer makes of sampled tokens."""
    ids = torch.tensor([[*completion.prompt_ids.tolist(), *completion.token_ids.tolist()]])
    start, device = len(completion.prompt_ids), policy.device
    with torch.no_grad():
        logprobs = policy.action_logprobs(
            ids.to(device),
            position_ids=torch.arange(ids.shape[1], device=device)[None],
            action_index=torch.arange(start, ids.shape[1], device=device),
        )
    return logprobs.float().cpu().numpy()


def apart(policy: Policy, completions: Sequence[Completion]) -> float:
    """Mean nats a token between engine and trainer."""
    each = [np.abs(one.logprobs - logprobs_of(policy, one)) for one in completions]
    return float(np.concatenate(each).mean())


async def decode(claims: Claims, folder: Path, *, cpu: bool) -> None:
    async with serving(folder, cpu=cpu) as server:
        engine = VllmEngine([server.url], request_timeout_s=600)
        base = load_policy(folder / "student", dtype="bfloat16")
        (sampled,) = await engine.probe_sampling([sampling(seed) for seed in range(8)])
        noise = max(apart(base, [sampled.alone]), apart(base, sampled.together))
        adapted = load_policy(folder / "student", dtype="bfloat16")
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, weights in adapted.trained_parameters().items():
                if "lora_B" in name:
                    weights.copy_(0.05 * torch.randn(weights.shape, generator=generator))
        adapted.save(folder / "adapter")
        await engine.load_policy(folder / "adapter", 1)
        (sampled,) = await engine.probe_sampling([sampling(seed, version=1) for seed in range(8)])
        with_adapter = [apart(adapted, [sampled.alone]), apart(adapted, sampled.together)]
        without = [apart(base, [sampled.alone]), apart(base, sampled.together)]
        await engine.aclose()
    limit = min(0.1, max(5 * noise, 0.02))
    claims.say(
        "vllm/decode",
        {"noise": noise, "alone, together": with_adapter, "from the base model": without},
        f"{noise:.1e} nats a token before an update; with an adapter {with_adapter[0]:.1e} alone "
        f"and {with_adapter[1]:.1e} eight at once (limit {limit:.2g}); left out it would be "
        f"{min(without):.1e}",
        holds=max(with_adapter) <= limit < min(without),
    )


async def precision(claims: Claims, folder: Path, *, cpu: bool) -> None:
    found = {}
    for head in ("model", "float32"):
        async with serving(folder, cpu=cpu, args={"hf_overrides": {"head_dtype": head}}) as server:
            policy = load_policy(folder / "student", dtype="bfloat16")
            engine = VllmEngine([server.url], request_timeout_s=600)
            sampled = [await engine.sample(sampling(seed)) for seed in range(16)]
            ratios = [logprobs_of(policy, one) - one.logprobs for one in sampled]
            ratio = np.concatenate(ratios).astype(np.float64)
            found[head] = (float(np.abs(ratio).mean()), float((np.expm1(ratio) - ratio).mean()))
            await engine.aclose()
    claims.say(
        "vllm/precision",
        found,
        "nats a token and mismatch_kl from the trainer: LM head in bfloat16 "
        f"{found['model'][0]:.1e}, {found['model'][1]:.1e}; in float32 "
        f"{found['float32'][0]:.1e}, {found['float32'][1]:.1e}",
        holds=found["float32"][0] <= 1.1 * found["model"][0] and found["float32"][0] < 0.03,
    )


def bits(completions: Sequence[Completion]) -> list[tuple[bytes, bytes]]:
    return [(one.token_ids.tobytes(), one.logprobs.tobytes()) for one in completions]


async def deterministic(claims: Claims, folder: Path, *, cpu: bool) -> None:
    seconds: dict[bool, float] = {}
    runs: dict[bool, list[list[tuple[bytes, bytes]]]] = {False: [], True: []}
    for wanted in (False, True):
        for _ in range(2):  # the second is a server that was started again
            async with serving(folder, cpu=cpu, deterministic=wanted) as server:
                engine = VllmEngine([server.url], request_timeout_s=600)
                requests = [sampling(seed, num_tokens=200) for seed in range(16)]
                await engine.sample(requests[0])
                started = time.perf_counter()
                together = await asyncio.gather(*map(engine.sample, requests))
                seconds[wanted] = time.perf_counter() - started
                alone = [await engine.sample(request) for request in reversed(requests)]
                runs[wanted] += [bits(together), bits(alone[::-1])]
                await engine.aclose()
    same = {wanted: sum(map(runs[wanted][0].__eq__, runs[wanted])) for wanted in runs}
    claims.say(
        "vllm/deterministic",
        {"seconds": seconds, "equal_of_4": same},
        f"of 4 runs of 16 generations (together, alone, both again after a restart) {same[True]} "
        f"have the same bits, {same[False]} without engine.deterministic; together they take "
        f"{seconds[True]:.1f} s, without {seconds[False]:.1f} s",
        holds=same[True] == 4,
    )


async def compact(claims: Claims, folder: Path, *, cpu: bool) -> None:
    async with serving(folder, cpu=cpu, prefix_caching=False) as server:
        engine = VllmEngine([server.url], request_timeout_s=600)
        replica = engine.at(server.url)
        request = scoring_of(make_ids(300), start=100)
        short = await engine.score(request)
        found, replica.scores_compactly = replica.scores_compactly, False
        long = await engine.score(request)
        await engine.aclose()
    difference = float(np.abs(short.logprobs - long.logprobs).max())
    claims.say(
        "vllm/compact",
        {"found": found, "difference": difference},
        f"compact scoring is {'there' if found else 'not there'}; {difference:.1e} nats at most "
        "from the long way",
        holds=found is not cpu and difference < 1e-3,
    )


async def cut(claims: Claims, folder: Path, *, cpu: bool) -> None:
    async with serving(folder, cpu=cpu, deterministic=True) as server:
        request = sampling(1, num_tokens=440)
        engine = VllmEngine([server.url], request_timeout_s=600)
        whole = await engine.sample(request)
        started = time.perf_counter()
        await engine.sample(request)
        short = VllmEngine([server.url], request_timeout_s=(time.perf_counter() - started) / 5)
        kept = await short.sample(request)
        await engine.aclose()
        await short.aclose()
    num = len(kept.token_ids)
    claims.say(
        "vllm/cut",
        num,
        f"{num} of 440 tokens were kept, the first of them",
        holds=0 < num < 440 and kept.token_ids.tolist() == whole.token_ids[:num].tolist(),
    )


async def servers(claims: Claims, folder: Path, *, cpu: bool) -> None:
    set_for_this_process({"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
    seconds = {}
    leaks = False
    for graphs in (True, False):
        started = time.perf_counter()
        async with serving(folder, cpu=cpu, captures_graphs=graphs) as server:
            seconds[graphs] = time.perf_counter() - started
            given = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
            leaks |= any(each.startswith(b"PYTORCH_ALLOC_CONF=") for each in given)
            is_closed = server.socket.parent.stat().st_mode & 0o077 == 0
    claims.say(
        "vllm/servers",
        {"start_s": seconds},
        f"a start takes {seconds[True]:.0f} s with CUDA graphs, {seconds[False]:.0f} s without; "
        "the trainer's allocator does not reach a server, and nobody else reaches its socket",
        holds=not leaks and is_closed,
    )


def run_part(claims: Claims, part: Part, folder: Path, *, cpu: bool) -> None:
    asyncio.run(part(claims, folder, cpu=cpu))


PARTS: dict[str, Part] = {
    "decode": decode,
    "precision": precision,
    "deterministic": deterministic,
    "compact": compact,
    "cut": cut,
    "servers": servers,
}


async def compare(claims: Claims, folder: Path, dtype: Literal["float32", "bfloat16"]) -> None:
    started = time.perf_counter()
    async with open_pair(
        folder,
        dtype=dtype,
        devices={"CUDA_VISIBLE_DEVICES": "0"},
        gpu_memory_utilization=0.1,
    ) as pair:
        start_s = time.perf_counter() - started
        apart = {0: await pair.mean_differences(0)}
        load_s = []
        for version in (1, 2, 3):
            adapter = save_adapter(pair.model, folder / str(version), seed=version)
            started = time.perf_counter()
            await pair.vllm.load_policy(adapter, version)
            load_s.append(time.perf_counter() - started)
            await pair.local.load_policy(adapter, version)
            apart[version] = await pair.mean_differences(version)
        await pair.load(save_model(pair.model, folder / "4", seed=4), 4)
        apart[4] = await pair.mean_differences(4)
    worst = max(map(max, apart.values()))
    claims.say(
        f"vllm/{dtype}",
        {"start_s": round(start_s, 1), "load_s": load_s, "nats": apart},
        f"ready in {start_s:.0f} s, an adapter loads in {1e3 * max(load_s):.0f} ms at most; from "
        f"the local engine {worst:.1e} nats a token at most as a mean (bound "
        f"{MEAN_TOLERANCE[dtype]:g}), of scores and samples, through four publications",
        holds=worst < MEAN_TOLERANCE[dtype],
    )


def demo(claims: Claims, folder: Path, overrides: list[str]) -> None:
    project = folder / "clinic"
    done = rnow("demo", "--dir", project, "--engine", "vllm", "--json", *overrides)
    result = json.loads(done.splitlines()[-1])
    steps = metrics(project / "runs" / "demo")
    mismatch = max(step["mismatch_kl"] for step in steps)
    dropped = sum(step["rollout/dropped"] + step["teacher/dropped"] for step in steps)
    drift = sum(step["tokens/drift"] for step in steps)
    times = sorted(step["time/step"] for step in steps)
    claims.say(
        "vllm/demo",
        {**result, "mismatch_kl": mismatch, "drift": drift, "dropped": dropped},
        f"before {result['before']:.1%}, after {result['after']:.1%} (bound {MIN_AFTER:.0%}), "
        f"mismatch_kl {mismatch:.1e} at most (bound {MAX_MISMATCH_KL:g}), tokens/drift "
        f"{drift:.0f}, dropped {dropped:.0f}, {times[len(times) // 2]:.1f} s a step",
        holds=result["after"] >= MIN_AFTER and mismatch < MAX_MISMATCH_KL and drift == dropped == 0,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--python", required=True, help="interpreter that has vLLM")
    parts = ["bfloat16", "float32", "demo", *PARTS]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--set", nargs="+", default=[], help="for the demo")
    parser.add_argument("--cpu", action="store_true", help="to try the script itself")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.cpu and not any(
        gpu.kind == "cuda" for gpu in usable_gpus(find_devices()).gpus
    ):
        print("no CUDA device here", file=sys.stderr)
        return 2
    python = str(Path(arguments.python).absolute())
    os.environ["RNOW_VLLM_PYTHON"] = python  # read by vllm_real.py
    claims = Claims()
    run: dict[str, Callable[[Path], object]] = {
        "bfloat16": lambda folder: asyncio.run(compare(claims, folder, "bfloat16")),
        "float32": lambda folder: asyncio.run(compare(claims, folder, "float32")),
        "demo": partial(demo, claims, overrides=[f"engine.python={python}", *arguments.set]),
        **{
            name: partial(run_part, claims, part, cpu=arguments.cpu) for name, part in PARTS.items()
        },
    }
    for name in PARTS if arguments.cpu and arguments.only == parts else arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            run[name](Path(folder))
    if arguments.json:
        print(json.dumps(claims.figures))
    return int(claims.num_broken > 0)


if __name__ == "__main__":
    sys.exit(main())
