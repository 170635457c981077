"""Two ranks of the trainer over NCCL, a GPU each: the gradient of one process, twice the same bits.

    python tests/bench/gpu_ranks.py [--only replicated sharded] [--cpu]

    replicated   LoRA in bfloat16 and in float32, the student whole on each rank
    sharded      all weights, cut over the ranks, in bfloat16 and in float32

Each rank is a process that sees one GPU, and meets the other as the ranks of a run do. Prints a
line a claim; exits 1 if one does not hold, 2 where there are no two CUDA devices. `--cpu`: the same
over gloo on the CPU, which shows that the script works.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench_update import random_batch, write_model
from gpu_smoke import Claims

from rnow.config.settings import AlgorithmSettings
from rnow.learner.packing import pack
from rnow.learner.policy import Policy
from rnow.learner.ranks.group import Ranks
from rnow.learner.trainer import accumulate_gradients

sys.path.insert(0, str(Path(__file__).parents[1]))
from builders import load_policy

NUM_RANKS = 2
BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2}
TUNING = {"replicated": "lora", "sharded": "full"}


def load(folder: Path, kind: str, dtype: str, device: str, ranks: Ranks | None) -> Policy:
    policy = load_policy(
        folder, tuning=TUNING[kind], dtype=dtype, device=device, seed=0, ranks=ranks
    )
    generator = torch.Generator().manual_seed(7)  # B = 0 would give no gradient on A
    for name, tensor in sorted(policy.trainable_state().items()):
        if ".lora_B." in name:
            tensor.copy_(0.02 * torch.randn(tensor.shape, generator=generator))
    return policy


def gradients(policy: Policy, ranks: Ranks | None, *, times: int) -> list[torch.Tensor]:
    batch = random_batch()
    found = []
    for _ in range(times):
        parameters = policy.trained_parameters()
        for parameter in parameters.values():
            parameter.grad = None
        accumulate_gradients(
            policy,
            pack(batch, max_tokens=1000, pads=False),
            algorithm=AlgorithmSettings(),
            num_actions=batch.num_actions,
            ranks=ranks,
        )
        grads = [p.grad for _, p in sorted(parameters.items()) if p.grad is not None]
        whole = [g.full_tensor() if hasattr(g, "full_tensor") else g for g in grads]
        found.append(torch.cat([each.flatten().cpu() for each in whole]))
    return found


def as_rank(rank: int, folder: Path, kind: str, dtype: str, device: str) -> None:
    ranks = Ranks.join(
        rank=rank,
        size=NUM_RANKS,
        rendezvous=f"file://{folder}/meet-{kind}-{dtype}",
        device="cuda" if device == "cuda" else "cpu",
        is_sharded=kind == "sharded",
        tell=lambda phase: None,
    )
    policy = load(folder / "model", kind, dtype, device, ranks)
    started = time.perf_counter()
    found = gradients(policy, ranks, times=2)
    if rank == 0:
        found.append(torch.tensor([time.perf_counter() - started]))
        torch.save(found, folder / f"{kind}-{dtype}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def start(rank: int, folder: Path, kind: str, dtype: str, device: str) -> "subprocess.Popen[bytes]":
    words = [sys.executable, __file__, "--rank", str(rank), "--folder", str(folder)]
    words += ["--only", kind, "--dtype", dtype, *(("--cpu",) if device == "cpu" else ())]
    return subprocess.Popen(words, env={**os.environ, "CUDA_VISIBLE_DEVICES": str(rank)})


def compare(claims: Claims, folder: Path, kind: str, device: str) -> None:
    for dtype, bound in BOUNDS.items():
        children = [start(rank, folder, kind, dtype, device) for rank in range(NUM_RANKS)]
        codes = [child.wait() for child in children]
        assert codes == [0] * NUM_RANKS, f"ranks ended with exit codes {codes}"
        first, again, seconds = torch.load(folder / f"{kind}-{dtype}.pt")
        policy = load(folder / "model", kind, dtype, device, None)
        (alone,) = gradients(policy, None, times=1)
        error = float((first.double() - alone.double()).norm() / alone.double().norm())
        same = torch.equal(first, again)
        claims.say(
            f"ranks/{kind}/{dtype}",
            {"error": error, "same_bits_twice": same, "seconds": float(seconds)},
            f"two ranks are {error:.1e} from one process (bound {bound:g}); the same bits a second "
            f"time: {'yes' if same else 'no'}; two gradients in {float(seconds):.2f} s",
            holds=error <= bound and same,
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(TUNING), default=list(TUNING))
    parser.add_argument("--cpu", action="store_true", help="to try the script itself")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = "cpu" if given.cpu else "cuda"
    if given.rank is not None:
        as_rank(given.rank, given.folder, given.only[0], given.dtype, device)
        return 0
    if not given.cpu and torch.cuda.device_count() < NUM_RANKS:
        print(f"no {NUM_RANKS} CUDA devices here", file=sys.stderr)
        return 2
    claims = Claims()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        for kind in given.only:
            compare(claims, folder, kind, device)
    return int(claims.num_broken > 0)


if __name__ == "__main__":
    sys.exit(main())
