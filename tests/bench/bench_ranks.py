"""Trainers of several ranks on this machine's CPU: what each rank holds, and what the demo learns.

    python tests/bench/bench_ranks.py memory     0.5 B random weights, all trained, 1 to 3 ranks
    python tests/bench/bench_ranks.py demo       the demo on one rank and on two

`memory` has real ranks make two updates, one number of them after the other, and prints what a rank
held after its student was loaded and at most while it updated; exit code 1 where that does not
fall. `demo` prints the accuracy on held-out prompts; exit code 1 where two ranks end more than one
point away from one.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rnow.config.settings import Config
from rnow.records import Batch, EndReason, RolloutId, ScoredTrajectory, StopReason, Trajectory, Turn
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import Journal
from rnow.training.ranks.places import RankHere, RanksHere
from rnow.training.ranks.processes import RankProcesses, RankSettings

NUM_TOKENS = 48  # of each trajectory
NUM_TRAJECTORIES = 3  # one a rank


def write_model(folder: Path) -> int:
    """Write random weights of the sizes of Qwen2.5-0.5B; return their number."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def batch() -> Batch:
    rng = np.random.default_rng(0)
    mask = np.arange(NUM_TOKENS) >= NUM_TOKENS // 2
    turn = Turn(
        start=NUM_TOKENS // 2,
        end=NUM_TOKENS,
        stop_reason=StopReason.STOP,
        tool_calls=(),
        duration_s=0.0,
    )
    logprobs = np.where(mask, -11.9, np.nan).astype(np.float32)
    scored = []
    for rollout in range(NUM_TRAJECTORIES):
        trajectory = Trajectory(
            id=RolloutId(0, 0, rollout),
            token_ids=rng.integers(0, 151_000, NUM_TOKENS).astype(np.int32),
            action_mask=mask,
            turn_index=np.where(mask, 0, -1).astype(np.int32),
            sampler_logprobs=logprobs,
            policy_version=np.where(mask, 0, -1).astype(np.int32),
            turns=(turn,),
            end_reason=EndReason.ANSWER,
            num_drift_tokens=0,
            duration_s=0.0,
        )
        scored.append(ScoredTrajectory(trajectory=trajectory, teacher_logprobs=logprobs - 1))
    return Batch(step=0, scored=tuple(scored))


def gib_of(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 2**20
    raise ValueError(field)


async def measure(folder: Path, model: Path, num_ranks: int) -> tuple[list[float], list[float]]:
    """Return GiB of each rank after loading, and at most during two updates."""
    run = RunDirectory(folder / f"run-{num_ranks}")
    run.logs.mkdir(parents=True)
    journal = Journal(run.trajectories(0))
    for scored in batch().scored:
        journal.append(scored)
    journal.close()
    config = Config.model_validate(
        {
            "data": {"batch_size": 1},
            "model": {"path": str(model), "tuning": "full"},
            "trainer": {"num_epochs": 1, "max_tokens_per_micro_batch": NUM_TOKENS},
        }
    )
    settings = RankSettings(
        config=config,
        student=model,
        device="cpu",
        run=run,
        num_steps=2,
        is_sharded=True,
        environments=({},) * num_ranks,
        place=RanksHere(num=num_ranks, run=run.path, logs=run.logs),
    )
    processes = await RankProcesses.start(settings)
    try:
        pids = [rank.pid for rank in processes.ranks if isinstance(rank, RankHere)]
        loaded = [gib_of(pid, "VmRSS") for pid in pids]
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is counted from here on
        ids = [[0, 0, rollout] for rollout in range(NUM_TRAJECTORIES)]
        order = {"type": "update", "step": 0, "ids": ids, "again": True}
        order["journal"] = str(run.trajectories(0))
        for _ in range(2):  # AdamW's moments come with the first
            await processes.ask(order, what="update")
        return loaded, [gib_of(pid, "VmHWM") for pid in pids]
    finally:
        await processes.end()


def memory(max_ranks: int) -> bool:
    peaks = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        num_parameters = write_model(folder / "model")
        print(f"{num_parameters / 1e9:.2f} B weights, all trained, float32, cut over the ranks")
        print("| ranks | GiB a rank, loaded | GiB a rank, most in two updates | seconds |")
        print("|---|---|---|---|")
        for num_ranks in range(1, max_ranks + 1):
            started = time.perf_counter()
            loaded, peak = asyncio.run(measure(folder, folder / "model", num_ranks))
            seconds = time.perf_counter() - started
            shown = (", ".join(f"{gib:.2f}" for gib in each) for each in (loaded, peak))
            print(f"| {num_ranks} | {' | '.join(shown)} | {seconds:.0f} |", flush=True)
            peaks.append(max(peak))
    return peaks != sorted(peaks, reverse=True)


def accuracy(folder: Path, *, seed: int, num_ranks: int) -> float:
    settings = (f"trainer.num_ranks={num_ranks}", "trainer.eval_step=1000")  # before and after
    for words in (
        ("init", folder, "--template", "clinic"),
        ("run", folder, "--name", "bench", f"seed={seed}", *settings),
    ):
        command = [sys.executable, "-m", "rnow", *map(str, words)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (folder / "runs" / "bench" / "evals.jsonl").read_text().splitlines()
    return float(json.loads(lines[-1])["accuracy"])


def demo(seeds: list[int]) -> bool:
    print("| seed | accuracy on 1 rank | on 2 ranks |")
    print("|---|---|---|")
    differences = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            one, two = (
                accuracy(Path(folder) / str(num), seed=seed, num_ranks=num) for num in (1, 2)
            )
        print(f"| {seed} | {one:.3f} | {two:.3f} |", flush=True)
        differences.append(two - one)
    return abs(sum(differences) / len(differences)) > 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["memory", "demo"])
    parser.add_argument("--max-ranks", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    broken = memory(given.max_ranks) if given.what == "memory" else demo(given.seeds)
    if broken:
        print("BOUND BROKEN")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
