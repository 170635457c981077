"""vLLM on one GPU beside the local engine there, and the demo with both roles on it.

    python tests/bench/gpu_vllm.py --python vllm/bin/python [--only bfloat16 float32 demo]
                                   [--set engine.args.enforce-eager=true]

`bfloat16` and `float32`: a server has the clinic's student and is given three adapters and a whole
model, one after the other; after each, scores and samples are compared with the local engine's on
the same GPU. `demo`: `rnow demo --engine vllm`, trainer and two servers on one GPU as the plan has
it, with what `--set` says of config.yml. Prints a line a claim; exits 1 if one does not hold, 2
where there is no CUDA device.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu_smoke import Claims, metrics, rnow
from vllm_pair import open_pair, save_adapter, save_model

from rnow.plan.devices import find_devices, usable_gpus

MEAN_TOLERANCE = {"bfloat16": 0.02, "float32": 1e-3}  # nats a token
MAX_MISMATCH_KL = 0.01
MIN_AFTER = 0.9


async def compare(claims: Claims, folder: Path, dtype: str) -> None:
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
    parts = ["bfloat16", "float32", "demo"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--set", nargs="+", default=[], help="for the demo")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not any(gpu.kind == "cuda" for gpu in usable_gpus(find_devices()).gpus):
        print("no CUDA device here", file=sys.stderr)
        return 2
    python = str(Path(arguments.python).absolute())
    os.environ["RNOW_VLLM_PYTHON"] = python  # read by vllm_real.py
    claims = Claims()
    run = {
        "bfloat16": lambda folder: asyncio.run(compare(claims, folder, "bfloat16")),
        "float32": lambda folder: asyncio.run(compare(claims, folder, "float32")),
        "demo": partial(demo, claims, overrides=[f"engine.python={python}", *arguments.set]),
    }
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            run[name](Path(folder))
    if arguments.json:
        print(json.dumps(claims.figures))
    return int(claims.num_broken > 0)


if __name__ == "__main__":
    sys.exit(main())
