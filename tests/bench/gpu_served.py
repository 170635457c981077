"""What servers do on a GPU beside gpu_vllm.py: agreement with themselves, several GPUs, resuming.

    python tests/bench/gpu_served.py --python /path/to/vllm/bin/python [--only scored] [--cpu]

    scored      what was sampled is scored alike by the same server
    prefix      a prompt that the prefix cache holds, under other adapters: numbers of its own each
    preempted   scores of more requests at once than the KV cache holds are those of one at a time
    parallel    a server over two GPUs starts though the trainer's allocator is set here
    resume      a run on vLLM with batch-invariant kernels, killed and resumed: the same weights
    lag         steps that overlap beside steps that do not, trainer and servers on this machine

Prints a line a claim; exits 1 if one does not hold, 2 where there is no CUDA device. `--cpu`: the
first three on vLLM's build for CPUs, which shows that the script works and nothing of GPUs.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from gpu_smoke import Claims, killed_and_gone_on, metrics, rnow
from gpu_vllm import sampling, serving

sys.path.insert(0, str(Path(__file__).parents[1]))
from vllm_pair import make_ids, save_adapter, scoring_of

from rnow.commands.init import init_project
from rnow.engines.vllm.engine import VllmEngine
from rnow.plan.devices import find_devices, usable_gpus
from rnow.records import FloatArray
from rnow.runtime.own_variables import set_for_this_process

MEAN_BOUND = 0.03  # nats a token, bfloat16
NUM_STEPS, KILL_AFTER_STEPS = 4, 2


async def scored(claims: Claims, folder: Path, *, cpu: bool) -> None:
    async with serving(folder, cpu=cpu) as server:
        engine = VllmEngine([server.url], request_timeout_s=600)
        apart = []
        for seed in range(8):
            one = await engine.sample(sampling(seed))
            start = len(one.prompt_ids)
            both = [*one.prompt_ids.tolist(), *one.token_ids.tolist()]
            again = await engine.score(scoring_of(both, start=start))
            apart.append(np.abs(one.logprobs - again.logprobs))
        await engine.aclose()
    mean = float(np.concatenate(apart).mean())
    claims.say(
        "served/scored",
        mean,
        f"sampled and scored log-probabilities of the same ids are {mean:.1e} nats a token apart "
        f"(bound {MEAN_BOUND:g})",
        holds=mean <= MEAN_BOUND,
    )


async def prefix(claims: Claims, folder: Path, *, cpu: bool) -> None:
    """The same prompt under version 0, 1, 2 with the cache, then each on a server without one."""
    found: dict[bool, list[FloatArray]] = {}
    for caching in (True, False):
        async with serving(folder, cpu=cpu, prefix_caching=caching) as server:
            engine = VllmEngine([server.url], request_timeout_s=600)
            values = []
            for version in (0, 1, 2):
                if version:
                    adapter = save_adapter(folder / "student", folder / f"a{version}", seed=version)
                    await engine.load_policy(adapter, version)
                for _ in range(2):  # the second from the cache
                    one = await engine.sample(sampling(9, version=version, num_tokens=1))
                request = scoring_of(make_ids(49), start=3, policy_version=version)
                values += [one.logprobs, (await engine.score(request)).logprobs]
            found[caching] = values
            await engine.aclose()
    pairs = zip(found[True], found[False], strict=True)
    apart = max(float(np.abs(cached - plain).mean()) for cached, plain in pairs)
    scores = found[True][1::2]
    moved = min(float(np.abs(scores[0] - other).mean()) for other in scores[1:])
    claims.say(
        "served/prefix",
        {"apart": apart, "moved": moved},
        f"with the prefix cache numbers are {apart:.1e} nats from those without (bound "
        f"{MEAN_BOUND:g}); an adapter moves them by {moved:.1e} at least",
        holds=apart <= MEAN_BOUND < moved,
    )


async def preempted(claims: Claims, folder: Path, *, cpu: bool) -> None:
    """A teacher whose cache of 40 blocks holds one text of 500 tokens and little more."""
    blocks = {} if cpu else {"num_gpu_blocks_override": 40}
    teacher = serving(folder, cpu=cpu, max_lora_rank=None, prefix_caching=False, args=blocks)
    async with teacher as server:
        engine = VllmEngine([server.url], request_timeout_s=600)
        requests = [scoring_of(make_ids(500 - number), start=3) for number in range(24)]
        together = await asyncio.gather(*map(engine.score, requests))
        alone = [await engine.score(request) for request in requests]
        await engine.aclose()
    apart = max(
        float(np.abs(one.logprobs - other.logprobs).mean())
        for one, other in zip(together, alone, strict=True)
    )
    claims.say(
        "served/preempted",
        apart,
        f"24 texts scored at once are {apart:.1e} nats a token at most from each alone (bound "
        f"{MEAN_BOUND:g})",
        holds=apart <= MEAN_BOUND,
    )


async def parallel(claims: Claims, folder: Path, *, cpu: bool) -> None:
    set_for_this_process({"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
    devices = {"CUDA_VISIBLE_DEVICES": "0,1"}
    started = time.perf_counter()
    async with serving(folder, cpu=cpu, devices=devices, tensor_parallel_size=2) as server:
        seconds = time.perf_counter() - started
        engine = VllmEngine([server.url], request_timeout_s=600)
        one = await engine.sample(sampling(1))
        await engine.aclose()
    claims.say(
        "served/parallel",
        seconds,
        f"a server over two GPUs is ready in {seconds:.0f} s and samples {len(one.token_ids)} "
        "tokens",
        holds=len(one.token_ids) == 60,
    )


def project_on_vllm(folder: Path, python: str) -> tuple[Path, list[str]]:
    project = folder / "clinic"
    init_project(project, template="clinic")
    return project, ["engine.kind=vllm", f"engine.python={python}"]


def resume(claims: Claims, folder: Path, python: str) -> None:
    project, words = project_on_vllm(folder, python)
    words += ["engine.deterministic=true", f"trainer.max_steps={NUM_STEPS}", "data.batch_size=4"]
    largest = killed_and_gone_on(project, words, after=KILL_AFTER_STEPS)
    claims.say(
        "served/resume",
        largest,
        f"killed after step {KILL_AFTER_STEPS} of {NUM_STEPS} and resumed: weights "
        + ("to the bit" if largest == 0 else f"differ by {largest:.1e}"),
        holds=largest == 0,
    )


def lag(claims: Claims, folder: Path, python: str) -> None:
    project, words = project_on_vllm(folder, python)
    found = {}
    for value in (0, 1):
        name = f"lag-{value}"
        steps = ["trainer.max_steps=8", f"trainer.max_policy_lag={value}"]
        rnow("run", project, "--name", name, *words, *steps)
        lines = metrics(project / "runs" / name)
        middle = sorted(line["time/step"] for line in lines[2:])[(len(lines) - 2) // 2]
        saved = sum(line.get("rollout/overlapped_s", 0.0) for line in lines)
        found[value] = {"step_s": middle, "overlapped_s": saved, "steps": len(lines)}
    claims.say(
        "served/lag",
        found,
        f"a step takes {found[0]['step_s']:.2f} s with lag 0, {found[1]['step_s']:.2f} s with "
        f"lag 1, of whose rollouts {found[1]['overlapped_s']:.1f} s went by beside updates",
        holds=found[0]["steps"] == found[1]["steps"] == 8 and found[1]["overlapped_s"] > 0,
    )


ON_SERVERS = {"scored": scored, "prefix": prefix, "preempted": preempted, "parallel": parallel}
RUNS = {"resume": resume, "lag": lag}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--python", required=True, help="interpreter that has vLLM")
    parts = [*ON_SERVERS, *RUNS]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--cpu", action="store_true", help="to try the script itself")
    given = parser.parse_args()
    if not given.cpu and not usable_gpus(find_devices()).gpus:
        print("no CUDA device here", file=sys.stderr)
        return 2
    python = str(Path(given.python).absolute())
    os.environ["RNOW_VLLM_PYTHON"] = python  # read by vllm_real.py
    claims = Claims()
    for name in given.only:
        with tempfile.TemporaryDirectory() as folder:
            if name in RUNS:
                RUNS[name](claims, Path(folder), python)
            else:
                asyncio.run(ON_SERVERS[name](claims, Path(folder), cpu=given.cpu))
    print(json.dumps(claims.figures))
    return int(claims.num_broken > 0)


if __name__ == "__main__":
    sys.exit(main())
