"""What an update costs: in time against a bare forward and backward, in memory against nothing.

    python tests/bench/bench_update.py                both, on this machine's device
    python tests/bench/bench_update.py --vocab 8192 --tokens 4096     a smaller head

Time: `Trainer.update` (packing, loss, clip and AdamW in it) ÷ forward and backward of the same
padded tokens, with an LM head on action positions alone and the simplest loss. Both in turn,
several times in one process; the ratio of the medians counts. Bound 1.10. Exits 1 above either.

Memory: the most that the LM head's forward and backward hold beyond their inputs, in a process of
its own, at a vocabulary of 152k and 16k tokens of which 10 % are actions. Bound 0.5 GB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rows import row

from rnow.config.settings import AlgorithmSettings, TrainerSettings
from rnow.learner.lm_head import default_chunk_tokens, token_logprobs
from rnow.learner.packing import MicroBatch, pack
from rnow.learner.policy import Policy
from rnow.learner.trainer import Trainer
from rnow.records import Batch, RolloutId, ScoredTrajectory

sys.path.insert(0, str(Path(__file__).parents[1]))
from builders import load_policy, make_trajectory, qwen3

MAX_TOKENS = 8192
MAX_RATIO, MAX_GB = 1.10, 0.5


def write_model(folder: Path) -> None:
    network = qwen3(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        initializer_range=0.02,
    )
    network.save_pretrained(folder)


def random_batch(*, count: int = 16) -> Batch:
    """Trajectories of 200 to 500 tokens; 40 tokens sampled in each of three turns."""
    rng = np.random.default_rng(0)
    scored = []
    for rollout in range(count):
        mask = np.zeros(int(rng.integers(200, 500)), dtype=np.bool_)
        for start in (40, 100, len(mask) - 40):
            mask[start : start + 40] = True
        logprobs = np.where(mask, rng.uniform(-12, -8, len(mask)), np.nan).astype(np.float32)
        trajectory = make_trajectory(
            rng.integers(0, 8192, len(mask)),
            mask,
            id=RolloutId(0, 0, rollout),
            sampler_logprobs=logprobs,
        )
        scored.append(ScoredTrajectory(trajectory=trajectory, teacher_logprobs=logprobs - 1))
    return Batch(step=0, scored=tuple(scored))


def bare(policy: Policy, micro_batches: tuple[MicroBatch, ...]) -> None:
    """Forward and backward as one would write them by hand, logits of all action tokens at once."""
    head = policy.network.head
    for micro_batch in micro_batches:
        batch = micro_batch.to(policy.device)
        with policy.network.autocast():
            output = policy.network.body(
                input_ids=batch.token_ids, position_ids=batch.position_ids, use_cache=False
            )
            hidden = output.last_hidden_state.flatten(0, 1)[batch.action_index - 1]
            logits = head(hidden)
        targets = batch.token_ids.flatten()[batch.action_index]
        torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum").backward()
    for parameter in policy.trained_parameters().values():
        parameter.grad = None


def seconds(function: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def measure_time(tuning: str, *, rounds: int) -> dict[str, float | str]:
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        policy = load_policy(folder, tuning=tuning)
        trainer = Trainer(
            policy,
            settings=TrainerSettings(num_epochs=1, max_tokens_per_micro_batch=MAX_TOKENS),
            algorithm=AlgorithmSettings(),
            num_steps=100,
            on_bad_numbers=lambda batch, reason: print(reason, file=sys.stderr),
        )
        batch = random_batch()
        micro_batches = pack(batch, max_tokens=MAX_TOKENS, pads=False)
        bare(policy, micro_batches)
        trainer.update(batch)
        times = [
            (seconds(lambda: trainer.update(batch)), seconds(lambda: bare(policy, micro_batches)))
            for _ in range(rounds)
        ]
    step, forward_backward = (median(column) for column in zip(*times, strict=True))
    return {
        "tuning": tuning,
        "update_s": round(step, 3),
        "bare_s": round(forward_backward, 3),
        "ratio": round(step / forward_backward, 3),
        "padded_tokens": sum(each.token_ids.numel() for each in micro_batches),
        "action_tokens": batch.num_actions,
    }


def measure_memory(*, vocab: int, tokens: int, width: int) -> dict[str, float]:
    """Run in a fresh process, since the peak of one never falls again."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    num_actions = tokens // 10
    hidden = torch.randn(num_actions, width, device=device, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab, width, device=device, dtype=dtype).div_(width**0.5)
    targets = torch.randint(0, vocab, (num_actions,), device=device)
    chunk_tokens = default_chunk_tokens(vocab)
    # The first product of a process allocates the library's own buffers.
    (hidden[:64] @ weight[:64].T).sum().backward()
    hidden.grad = None
    before = peak_bytes()

    def run() -> None:
        token_logprobs(
            hidden, targets, weight=weight, bias=None, chunk_tokens=chunk_tokens
        ).sum().backward()

    spent = seconds(run)
    return {
        "vocab": vocab,
        "action_tokens": num_actions,
        "width": width,
        "chunk_tokens": chunk_tokens,
        "peak_gb": round((peak_bytes() - before) / 1e9, 3),
        "all_logits_gb": round(num_actions * vocab * 4 / 1e9, 3),
        "seconds": round(spent, 2),
    }


def peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.memory_only:
        sizes = {"vocab": arguments.vocab, "tokens": arguments.tokens, "width": arguments.width}
        print(json.dumps(measure_memory(**sizes)))
        return 0
    # First, since Linux lets a child's peak begin at its parent's.
    words = [sys.executable, __file__, "--memory-only", *sys.argv[1:]]
    memory = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    print(json.dumps(memory))
    beside = f"all logits {memory['all_logits_gb']} GB"
    held = [row("memory of the LM head", memory["peak_gb"], "GB", most=MAX_GB, beside=beside)]
    for tuning in ("lora", "full"):
        found = measure_time(tuning, rounds=arguments.rounds)
        print(json.dumps(found), flush=True)
        beside = f"update {found['update_s']} s, bare PyTorch, padded {found['bare_s']} s"
        ratio = float(found["ratio"])
        note = "Bare PyTorch has the simplest loss, and neither clip nor AdamW."
        name = f"update / bare, {tuning}"
        held.append(row(name, ratio, "", most=MAX_RATIO, beside=beside, note=note))
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
