"""One update of a model of real size on one GPU: its memory against the plan's, and its speed.

    python tests/bench/gpu_update.py Qwen3-8B --loads 1x32768 16x8192 [--rank 32]

The model has the published sizes (tests/fixtures/configs) and random weights, written to a folder
and loaded as a run loads them. For each load, ROWSxTOKENS, `Trainer.update` runs twice on a batch
of that many trajectories of that many tokens, 10 % of them actions in four turns; the second is
timed. Memory is the most that torch held in both, as it counts it, and the whole card's afterwards:
torch gives nothing back meanwhile, and nobody else is on the card. Prints a line of JSON a load;
gpu_smoke.py holds it to the plan.

First the kernel for several sequences in a row, with a window and without, is held to the same
attention in float64 on the CPU, output and gradients: exit code 1 where it is further off than
bfloat16 explains.

Speed is the share of the card's matrix rate (989 TFLOP/s for an H100 in bfloat16) that the maths of
LoRA needs: twice 2 FLOPs for each weight and token, forward and back to the inputs, and causal
attention. What checkpointing computes a second time is no work in this count.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rnow.config.settings import AlgorithmSettings, TrainerSettings
from rnow.learner.attention import Sequences, attend
from rnow.learner.trainer import Trainer
from rnow.plan.figures import ModelFigures, read_figures
from rnow.plan.memory import GIB, TrainerLoad, trainer_memory
from rnow.records import Batch, RolloutId, ScoredTrajectory

sys.path.insert(0, str(Path(__file__).parents[1]))
from builders import load_policy, make_trajectory

CONFIGS = Path(__file__).resolve().parent.parent / "fixtures" / "configs"
NUM_TURNS = 4
PACKED_BOUND = 0.02  # bfloat16 keeps 8 bits; another sequence's tokens would be 0.5 and more
ACTION_SHARE = 0.1
PEAK_FLOPS = 989e12  # of an H100's matrix units in bfloat16, without sparsity
# A file system in memory where there is one: 16 GB of weights are read once.
MEMORY_FOLDER = Path("/dev/shm")


def write_model(config: dict[str, Any], folder: Path) -> None:
    """Write a model with random bfloat16 weights, drawn on the GPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {name: value for name, value in config.items() if name != "model_type"}
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **sizes), dtype=torch.bfloat16
        )
    model.save_pretrained(folder)


def random_batch(*, rows: int, tokens: int, vocab_size: int) -> Batch:
    """Trajectories of random ids whose turns end at even distances, the last at the very end."""
    rng = np.random.default_rng(0)
    turn_tokens = int(tokens * ACTION_SHARE / NUM_TURNS)
    scored = []
    for rollout in range(rows):
        mask = np.zeros(tokens, dtype=np.bool_)
        turn_index = np.zeros(tokens, dtype=np.int32)
        for turn in range(NUM_TURNS):
            end = tokens * (turn + 1) // NUM_TURNS
            mask[end - turn_tokens : end] = True
            turn_index[end - turn_tokens : end] = turn
        logprobs = np.where(mask, rng.uniform(-13, -11, tokens), np.nan).astype(np.float32)
        trajectory = make_trajectory(
            rng.integers(0, vocab_size, tokens),
            mask,
            id=RolloutId(0, 0, rollout),
            turn_index=turn_index,
            sampler_logprobs=logprobs,
        )
        scored.append(ScoredTrajectory(trajectory=trajectory, teacher_logprobs=logprobs - 1))
    return Batch(step=0, scored=tuple(scored))


def needed_flops(figures: ModelFigures, batch: Batch) -> float:
    """Return what forward and backward of an adapter's gradient cannot do without."""
    lengths = [item.trajectory.num_tokens for item in batch.scored]
    matrices = 2 * 2 * figures.num_linear_parameters * sum(lengths)
    head = 2 * 2 * figures.vocab_size * figures.hidden_size * batch.num_actions
    # Two products forward and four back, each 2 FLOPs for a query's entry and half of all keys.
    attention = 6 * figures.num_layers * figures.query_size * sum(n * n for n in lengths)
    return float(matrices + head + attention)


def load_trainer(config: dict[str, Any], *, rank: int, dtype: str) -> Trainer:
    in_memory = MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None
    with tempfile.TemporaryDirectory(dir=in_memory) as folder:
        write_model(config, Path(folder))
        torch.cuda.empty_cache()
        policy = load_policy(folder, qlora_rank=rank, dtype=dtype, device="cuda")
    return Trainer(
        policy,
        settings=TrainerSettings(num_epochs=1),
        algorithm=AlgorithmSettings(),
        num_steps=100,
        on_bad_numbers=lambda batch, reason: print(reason, file=sys.stderr),
    )


def measure(
    trainer: Trainer, figures: ModelFigures, load: TrainerLoad, *, rows: int, tokens: int
) -> dict[str, Any]:
    batch = random_batch(rows=rows, tokens=tokens, vocab_size=figures.vocab_size)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    _, update_s = (timed_update(trainer, batch) for _ in range(2))
    free, size = torch.cuda.mem_get_info()
    planned = trainer_memory(figures, load)
    return {
        "model": figures.path,
        "rank": load.lora_rank,
        "dtype_bytes": load.dtype_bytes,
        "rows": rows,
        "tokens": tokens,
        "update_s": round(update_s, 2),
        "tokens_per_s": round(rows * tokens / update_s),
        "peak_share": round(needed_flops(figures, batch) / update_s / PEAK_FLOPS, 3),
        "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "card_gib": round((size - free) / GIB, 2),
        "planned_tensors_gib": round((planned.total - planned.overhead) / GIB, 2),
        "planned_gib": round(planned.total / GIB, 2),
    }


def timed_update(trainer: Trainer, batch: Batch) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = trainer.update(batch)
    torch.cuda.synchronize()
    assert not result["trainer/skipped"], result
    return time.perf_counter() - started


def packed_attention_error(window: int | None, *, device: str = "cuda") -> float:
    """Return how far attention over packed sequences is from the CPU's in float64: the worst of
    the output and the three gradients, as a share of its norm."""
    lengths = (100, 1, 300, 128)
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.randn(1, heads, sum(lengths), 64, generator=generator).bfloat16()
        for heads in (8, 2, 2)
    ]
    module: Any = torch.nn.Module()
    module.num_key_value_groups = 4
    module.is_causal = True
    found = []
    for place, dtype in ((device, torch.bfloat16), ("cpu", torch.float64)):
        tensors = [each.to(place, dtype, copy=True).requires_grad_() for each in drawn]
        query, key, value = tensors
        sequences = Sequences(starts=borders.to(place), lengths=lengths, window=window)
        mixed, _ = attend(module, query, key, value, sequences)
        mixed.square().sum().backward()
        found.append([mixed.detach(), *(tensor.grad for tensor in tensors)])
    return max(
        float((gpu.cpu().double() - cpu).norm() / cpu.norm())
        for gpu, cpu in zip(*found, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", choices=sorted(path.stem for path in CONFIGS.glob("*.json")))
    parser.add_argument("--loads", nargs="+", default=["1x32768", "16x8192"])
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here", file=sys.stderr)
        return 2
    errors = {window: packed_attention_error(window) for window in (None, 64)}
    print(
        json.dumps({"packed_attention_error": {str(key): value for key, value in errors.items()}})
    )
    if max(errors.values()) > PACKED_BOUND:
        return 1
    config = json.loads((CONFIGS / f"{arguments.model}.json").read_text())
    figures = read_figures(arguments.model, config)
    trainer = load_trainer(config, rank=arguments.rank, dtype=arguments.dtype)
    for rows, tokens in (map(int, load.split("x")) for load in arguments.loads):
        load = TrainerLoad(
            tuning="lora",
            lora_rank=arguments.rank,
            dtype_bytes=4 if arguments.dtype == "float32" else 2,
            max_tokens=max(tokens, TrainerSettings(num_epochs=1).max_tokens_per_micro_batch),
            checkpointing=True,
        )
        result = measure(trainer, figures, load, rows=rows, tokens=tokens)
        print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
