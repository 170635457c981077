"""rnow on one GPU: is it found, does the demo learn, is the plan right, is the gradient the same.

    python tests/bench/gpu_smoke.py                       everything, in 10 minutes on an H100
    python tests/bench/gpu_smoke.py --only gradient demo  some of it
    python tests/bench/gpu_smoke.py --json                the figures once more as JSON, last

No network and no files but rnow's own: models are the demo's, or have published sizes and random
weights. Needs 80 GB of GPU memory for the largest (`--models` takes others) and the card for
itself. Prints a line a claim; exits 1 if one does not hold, 2 where there is no CUDA device.

    devices    the GPU is found without torch, and a plan is made for it
    gradient   the same batch has the same gradient however it is cut; float32 and bfloat16
    demo       `rnow demo` with everything on the GPU in bfloat16
    resume     a run that was killed goes on, and what it comes to
    update     an update at real size takes no more memory than the plan says
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rows import hand_on

from rnow.commands.init import init_project
from rnow.config.load import load_config
from rnow.errors import ConfigError
from rnow.plan.devices import find_devices, usable_gpus
from rnow.plan.engine_specs import GROWING_MEMORY
from rnow.plan.figures import read_figures
from rnow.plan.make import make_plan
from rnow.plan.workload import Workload

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent.parent
CONFIGS = ROOT / "tests" / "fixtures" / "configs"
MAX_GRADIENT_ERROR = {"float32": 1e-4, "bfloat16": 2e-2}
MAX_MISMATCH_KL = 0.01
MIN_AFTER = 0.9
KILL_AFTER_STEPS, NUM_STEPS = 3, 6
# Student, teacher, and what of the reference project is changed for one GPU of 80 GB.
PLANNED = ("Qwen3-4B", "Qwen3-8B", ("teacher.quantization=fp8",))


class Claims:
    """What was found, said as it is found."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.num_broken = 0

    def say(self, name: str, value: Any, text: str, *, holds: bool = True) -> None:
        self.figures[name] = value
        self.num_broken += not holds
        print(f"{'ok    ' if holds else 'BROKEN'} {name}: {text}", flush=True)
        first = text.splitlines()[0]
        hand_on(
            name=name, value=None, unit="", bound="", ok=holds, beside=first, note="", figures=value
        )


def devices(claims: Claims, folder: Path, models: list[str]) -> None:
    started = time.perf_counter()
    found = find_devices()
    milliseconds = (time.perf_counter() - started) * 1e3
    gpu = found.gpus[0]
    without_torch = "torch" not in sys.modules
    claims.say(
        "devices/found",
        {"name": gpu.name, "memory_mib": gpu.memory_mib, "ms": round(milliseconds)},
        f"{gpu.name}, {gpu.memory_mib} MiB, in {milliseconds:.0f} ms, "
        f"{'without' if without_torch else 'WITH'} torch",
        holds=without_torch and gpu.memory_mib is not None,
    )
    student, teacher, changes = PLANNED
    overrides = [f"model.path=Qwen/{student}", f"teacher.path=Qwen/{teacher}", *changes]
    workload = Workload(
        config=load_config(ROOT, overrides=overrides).config,
        **{  # type: ignore[arg-type]
            role: read_figures(name, json.loads((CONFIGS / f"{name}.json").read_text()))
            for role, name in (("student", student), ("teacher", teacher))
        },
    )
    try:
        lines = make_plan(workload, found).lines()
    except ConfigError as error:
        lines = tuple(str(error).splitlines())
    claims.say("devices/plan", list(lines), "\n       ".join((" ".join(overrides), *lines)))


def gradient(claims: Claims, folder: Path, models: list[str], *, device: str = "cuda") -> None:
    """Compare the gradient of one batch in rows side by side with that of a row at a time."""
    import torch
    from bench_update import random_batch, write_model  # which brings builders' folder
    from builders import load_policy

    from rnow.config.settings import AlgorithmSettings
    from rnow.learner.packing import pack
    from rnow.learner.policy import Policy
    from rnow.learner.trainer import accumulate_gradients

    write_model(folder / "model")
    batch = random_batch()
    for dtype, bound in MAX_GRADIENT_ERROR.items():
        policy = load_policy(folder / "model", dtype=dtype, device=device)
        trained = policy.trained_parameters()
        torch.manual_seed(0)
        for name, parameter in trained.items():
            if ".lora_B." in name:  # at first 0, and so the gradient of every A
                parameter.data.normal_(std=0.02)

        def flat(max_tokens: int, policy: Policy = policy) -> torch.Tensor:
            parameters = policy.trained_parameters().values()
            for parameter in parameters:
                parameter.grad = None
            accumulate_gradients(
                policy,
                pack(batch, max_tokens=max_tokens, pads=False),
                algorithm=AlgorithmSettings(),
                num_actions=batch.num_actions,
            )
            return torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None])

        alone = flat(1)
        cuts = {max_tokens: flat(max_tokens) for max_tokens in (1000, 3000, 16384)}
        worst = max(float((cut - alone).norm() / alone.norm()) for cut in cuts.values())
        again = bool((flat(16384) == cuts[16384]).all())
        claims.say(
            f"gradient/{dtype}",
            {"worst": worst, "same_bits_twice": again},
            f"cut in four ways, apart by {worst:.1e} at most (bound {bound:g}); "
            f"the same bits a second time: {'yes' if again else 'no'}",
            holds=worst <= bound,
        )


def demo(claims: Claims, folder: Path, models: list[str]) -> None:
    project = folder / "clinic"
    done = rnow("demo", "--dir", project, "--json")
    result = json.loads(done.splitlines()[-1])
    steps = metrics(project / "runs" / "demo")
    mismatch = max(step["mismatch_kl"] for step in steps)
    dropped = sum(step["rollout/dropped"] + step["teacher/dropped"] for step in steps)
    drift = sum(step["tokens/drift"] for step in steps)
    probe = max(step["publish/probe"] for step in steps)
    times = sorted(step["time/step"] for step in steps)
    claims.say(
        "demo/accuracy",
        {name: result[name] for name in ("before", "after", "teacher", "seconds")},
        f"before {result['before']:.1%}, after {result['after']:.1%} (bound {MIN_AFTER:.0%}), "
        f"teacher {result['teacher']:.1%}, {result['seconds']:.0f} s",
        holds=result["after"] >= MIN_AFTER and result["before"] <= 0.5 * result["teacher"],
    )
    claims.say(
        "demo/agreement",
        {"mismatch_kl": mismatch, "probe": probe, "drift": drift, "dropped": dropped},
        f"mismatch_kl {mismatch:.1e} at most (bound {MAX_MISMATCH_KL:g}), probe {probe:.1e} nats "
        f"at most, tokens/drift {drift:.0f}, dropped {dropped:.0f}",
        holds=mismatch < MAX_MISMATCH_KL and drift == 0 and dropped == 0,
    )
    median = times[len(times) // 2]
    rollout = sorted(step["time/rollout"] for step in steps)[len(steps) // 2]
    claims.say(
        "demo/seconds",
        {"step": median, "rollout": rollout},
        f"{median:.1f} s a step, {rollout:.1f} s of it rollouts (medians)",
    )


def killed_and_gone_on(project: Path, words: list[str], *, after: int) -> float:
    """Return the largest difference of weights between the run "killed", ended by SIGKILL after so
    many steps and gone on with, and "whole", left alone."""
    from safetensors.numpy import load_file

    rnow("run", project, "--name", "whole", *words)
    killed = project / "runs" / "killed"
    with subprocess.Popen(
        command("run", project, "--name", "killed", *words), stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and len(metrics(killed)) < after:
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
    rnow("run", project, "--name", "killed", *words)
    whole, other = (
        load_file(project / "runs" / name / "model" / "adapter_model.safetensors")
        for name in ("whole", "killed")
    )
    return max(float(abs(whole[name] - other[name]).max()) for name in whole)


def resume(claims: Claims, folder: Path, models: list[str]) -> None:
    """Kill a run by SIGKILL after some steps and go on with it; compare with one left alone."""
    project = folder / "clinic"
    init_project(project, template="clinic")
    words = ["engine.kind=local", f"trainer.max_steps={NUM_STEPS}", "data.batch_size=4"]
    largest = killed_and_gone_on(project, words, after=KILL_AFTER_STEPS)
    steps = [step["step"] for step in metrics(project / "runs" / "killed")]
    same = largest == 0.0
    claims.say(
        "resume/steps",
        {"steps": steps, "largest_difference": largest},
        f"killed after step {KILL_AFTER_STEPS} and resumed: steps {steps}; weights of the whole "
        f"run {'to the bit' if same else f'but for {largest:.1e} at most'}",
        holds=len(steps) == NUM_STEPS,
    )


def update(claims: Claims, folder: Path, models: list[str]) -> None:
    """Each model in a process of its own, so that its memory is its own; Qwen3-1.7B also wide."""
    wide = (
        [["Qwen3-1.7B", "--dtype", "float32", "--loads", "1x16384"]]
        if "Qwen3-1.7B" in models
        else []
    )
    for arguments in (*([model] for model in models), *wide):
        words = [sys.executable, str(BENCH / "gpu_update.py"), *arguments]
        environ = {**os.environ, **GROWING_MEMORY}  # as `rnow run` has it
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True, env=environ)
        for line in done.stdout.splitlines():
            result = json.loads(line)
            load = f"{result['rows']}x{result['tokens']}"
            if result["dtype_bytes"] == 4:
                load += "/float32"
            claims.say(
                f"update/{result['model']}/{load}",
                result,
                f"{result['card_gib']} GiB of the card, {result['planned_gib']} planned; tensors "
                f"{result['allocated_gib']}, {result['planned_tensors_gib']} planned; "
                f"{result['update_s']} s, {result['tokens_per_s']} tokens/s, "
                f"{result['peak_share']:.0%} of the card's peak",
                holds=result["card_gib"] <= result["planned_gib"],
            )


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "rnow", *map(str, words)]


def rnow(*words: object) -> str:
    return subprocess.run(command(*words), stdout=subprocess.PIPE, check=True, text=True).stdout


def metrics(run: Path) -> list[dict[str, float]]:
    """Return the whole lines of a run's metrics.jsonl, which may be being written."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


PARTS: dict[str, Callable[[Claims, Path, list[str]], None]] = {
    "devices": devices,
    "gradient": gradient,
    "demo": demo,
    "resume": resume,
    "update": update,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--models", nargs="+", default=["Qwen3-8B", "Qwen3-4B", "Qwen3-1.7B"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="gradient alone, to try the script")
    arguments = parser.parse_args()
    if arguments.cpu:
        claims = Claims()
        with tempfile.TemporaryDirectory() as folder:
            gradient(claims, Path(folder), [], device="cpu")
        return int(claims.num_broken > 0)
    found = usable_gpus(find_devices())
    if not any(gpu.kind == "cuda" for gpu in found.gpus):
        print(f"no CUDA device here: {found.reason}", file=sys.stderr)
        return 2
    claims = Claims()
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[name](claims, Path(folder), arguments.models)
    if arguments.json:
        print(json.dumps(claims.figures))
    return int(claims.num_broken > 0)


if __name__ == "__main__":
    sys.exit(main())
