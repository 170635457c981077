"""The demo with both roles on vLLM, over several seeds, beside the local engine.

    python tests/bench/bench_demo_vllm.py --python .venv-vllm/bin/python --seeds 0 1 2

Starts one server for the student and one for the teacher, and trains every seed on them, by
engine.url and teacher.url. Accuracy is measured as the demo does it, in this process. `--local`
names results that bench_demo.py saved; without it the demo is run here too. Exits 1 if a bound does
not hold: mean accuracy within 4 points of the local engine's, mismatch_kl below 0.01 and
tokens/drift 0 at every step.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_demo import run_demo
from rows import row

from rnow.commands.init import init_project
from rnow.config.load import load_config
from rnow.engines.vllm.command import TEACHER_TOKENS_A_STEP, VllmServerSettings
from rnow.engines.vllm.server import VllmServer

NUM_STEPS = 20  # of the demo
MAX_POINTS = 0.04
MAX_MISMATCH_KL = 0.01


async def start_servers(project: Path, python: str, logs: Path) -> tuple[VllmServer, VllmServer]:
    config = load_config(project).config
    window = config.rollout.max_context_window
    student = VllmServerSettings(
        role="student",
        model=project / "models" / "student",
        log_file=logs / "student.log",
        max_model_len=window,
        python=python,
        dtype="float32",
        deterministic=False,
        start_timeout_s=900.0,
        max_lora_rank=config.model.qlora_rank,
    )
    teacher = VllmServerSettings(
        role="teacher",
        max_model_len=window + 1,
        max_num_batched_tokens=TEACHER_TOKENS_A_STEP,
        prefix_caching=False,
        model=project / "models" / "teacher",
        log_file=logs / "teacher.log",
        python=python,
        dtype="float32",
        deterministic=False,
        start_timeout_s=900.0,
    )
    first, second = await asyncio.gather(VllmServer.start(student), VllmServer.start(teacher))
    return first, second


def rnow(*words: object) -> str:
    command = [sys.executable, "-m", "rnow", *map(str, words)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


def kill_once(seed: int, *words: object, metrics_file: Path) -> None:
    """Start the run and end it somewhere in a step that the seed names, with a SIGKILL."""
    draw = random.Random(seed)
    step, seconds = draw.randrange(2, NUM_STEPS - 2), draw.uniform(0, 10)
    command = [sys.executable, "-m", "rnow", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not (metrics_file.exists() and metrics_file.read_text().count("\n") >= step):
            assert process.poll() is None, "the run ended before it was to be killed"
            time.sleep(0.1)
        time.sleep(seconds)
        process.kill()
    print(f"seed {seed}: killed {seconds:.1f} s into step {step}", flush=True)


def train_and_measure(
    project: Path, seed: int, overrides: list[str], *, kill: bool
) -> dict[str, float]:
    started = time.perf_counter()
    name = f"seed-{seed}"
    words = ("run", project, "--name", name, f"seed={seed}", *overrides)
    if kill:
        kill_once(seed, *words, metrics_file=project / "runs" / name / "metrics.jsonl")
    print(rnow(*words), flush=True)
    seconds = time.perf_counter() - started
    steps = [
        json.loads(line)
        for line in (project / "runs" / name / "metrics.jsonl").read_text().splitlines()
    ]
    evaluated = json.loads(
        rnow("eval", project, "--model", name, "engine.kind=local", "--json").splitlines()[-1]
    )
    return {
        "after": evaluated["accuracy"],
        "mismatch_kl": max(step["mismatch_kl"] for step in steps),
        "drift": sum(step["tokens/drift"] for step in steps),
        "dropped": sum(step["rollout/dropped"] + step["teacher/dropped"] for step in steps),
        "steps": len(steps),
        "seconds": seconds,
    }


async def measure(
    python: str, seeds: list[int], folder: Path, *, kill: bool
) -> list[dict[str, float]]:
    project = folder / "clinic"
    init_project(project, template="clinic")
    student, teacher = await start_servers(project, python, folder)
    overrides = ["engine.kind=vllm", f"engine.url={student.url}", f"teacher.url={teacher.url}"]
    try:
        return [
            await asyncio.to_thread(train_and_measure, project, seed, overrides, kill=kill)
            for seed in seeds
        ]
    finally:
        await asyncio.gather(student.stop(), teacher.stop())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--python", default=".venv-vllm/bin/python")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--local", type=Path)
    parser.add_argument("--kill", action="store_true", help="kill each run once, and resume it")
    arguments = parser.parse_args()
    seeds: list[int] = arguments.seeds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = str(Path(arguments.python).absolute())
        served = asyncio.run(measure(python, seeds, folder, kill=arguments.kill))
        if arguments.local is None:
            local = {str(seed): run_demo(seed, folder / f"local-{seed}", lag=0) for seed in seeds}
        else:
            local = json.loads(arguments.local.read_text())
    print("| seed | local | vLLM | mismatch_kl | drift | dropped | seconds |")
    print("|---|---|---|---|---|---|---|")
    for seed, result in zip(seeds, served, strict=True):
        print(
            f"| {seed} | {100 * local[str(seed)]['after']:.1f} % | {100 * result['after']:.1f} % "
            f"| {result['mismatch_kl']:.1e} | {result['drift']:.0f} | {result['dropped']:.0f} "
            f"| {result['seconds']:.0f} |"
        )
    ours = sum(local[str(seed)]["after"] for seed in seeds) / len(seeds)
    theirs = sum(result["after"] for result in served) / len(seeds)
    drift = sum(result["drift"] for result in served)
    beside = f"vLLM {100 * theirs:.1f} %, local engine {100 * ours:.1f} %"
    short = min(result["steps"] for result in served)
    held = [
        row("after, apart", abs(theirs - ours), "", most=MAX_POINTS, beside=beside),
        row("mismatch_kl", max(r["mismatch_kl"] for r in served), "nats", most=MAX_MISMATCH_KL),
        row("steps of a run", short, "", least=NUM_STEPS, most=NUM_STEPS),
        row("tokens/drift", drift, "", most=0),
    ]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
