"""Updates of one batch by one, two and three ranks: gradients, steps and checkpoints, as files.

A program: python rank_cases.py FOLDER. Three processes, forked once torch is imported, make one
group for all cases; FOLDER/<case>.pt holds what rank 0 found. What must be equal is for
tests/unit/learner/test_ranks.py to say.
"""

import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft  # noqa: F401
import torch
import torch.distributed as dist
from builders import load_policy, make_trajectory, qwen3
from torch import Tensor

from rnow.config.settings import AlgorithmSettings, TrainerSettings
from rnow.learner.packing import pack
from rnow.learner.policy import Policy
from rnow.learner.ranks.group import Ranks
from rnow.learner.student import Student
from rnow.learner.trainer import Trainer, accumulate_gradients
from rnow.records import Batch, RolloutId, ScoredTrajectory

WORLD = 3
VOCAB = 128
CUTS = (1, 60, 100_000)  # tokens of a micro-batch: seven, a few, one for all ranks
CHECKPOINTS = ("alone", "2 replicated", "2 sharded", "3 sharded")  # who writes and who reads


@dataclass(frozen=True)
class Case:
    tuning: str
    is_tied: bool
    dtype: str
    num_ranks: int  # 1: in this process, without a group
    is_sharded: bool
    max_tokens: int

    @property
    def name(self) -> str:
        tied = "tied" if self.is_tied else "untied"
        kind = "sharded" if self.is_sharded else "replicated"
        return f"{self.tuning}-{tied}-{self.dtype}-{self.num_ranks}-{kind}-{self.max_tokens}"


CASES = [
    Case(*values)
    for values in itertools.product(
        ("lora", "full"), (True, False), ("float32", "float64"), (2, 3), (False, True), CUTS
    )
]


def batch(*, step: int = 0) -> Batch:
    """Seven trajectories of very different lengths, with tool text between their turns."""
    rng = np.random.default_rng(5 + step)
    scored = []
    for rollout, length in enumerate((9, 40, 14, 33, 6, 21, 52)):
        mask = rng.random(length) < 0.6
        mask[0], mask[-1] = False, True
        trajectory = make_trajectory(
            rng.integers(0, VOCAB, length),
            mask,
            id=RolloutId(step, 0, rollout),
            turn_index=np.where(mask, rollout % 3, -1),
            sampler_logprobs=rng.uniform(-6, -3, length),
            policy_version=step,
        )
        teacher = np.where(mask, rng.uniform(-8, -2, length), np.nan).astype(np.float32)
        scored.append(ScoredTrajectory(trajectory=trajectory, teacher_logprobs=teacher))
    return Batch(step=step, scored=tuple(scored))


def load(folder: Path, tuning: str, *, is_tied: bool, dtype: str, ranks: Ranks | None) -> Policy:
    policy = load_policy(
        folder / ("tied" if is_tied else "untied"),
        tuning=tuning,
        dtype=dtype,
        qlora_rank=4,
        chunk_tokens=7,
        activation_checkpointing=True,
        ranks=ranks,
    )
    generator = torch.Generator().manual_seed(7)  # B = 0 would give no gradient on A
    for name, tensor in policy.trainable_state().items():
        if ".lora_B." in name:
            tensor.normal_(0.0, 0.1, generator=generator)
    return policy


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gradient(policy: Policy, ranks: Ranks | None, *, max_tokens: int) -> dict[str, Tensor]:
    for parameter in policy.trained_parameters().values():
        parameter.grad = None
    given = batch()
    totals = accumulate_gradients(
        policy,
        pack(given, max_tokens=max_tokens, pads=False),
        algorithm=AlgorithmSettings(kl_discount=0.7),
        num_actions=given.num_actions,
        ranks=ranks,
    )
    parameters = policy.trained_parameters()
    gradients = [each.grad for each in parameters.values() if each.grad is not None]
    assert len(gradients) == len(parameters)
    flat = torch.cat([whole(each).flatten() for each in gradients])
    names = ("loss", "reverse_kl", "max_advantage", "turn_reverse_kl", "turn_actions")
    return {"gradient": flat} | {name: getattr(totals, name) for name in names}


def student(folder: Path, ranks: Ranks | None) -> Student:
    policy = load(folder, "full", is_tied=True, dtype="float32", ranks=ranks)
    trainer = Trainer(
        policy,
        settings=TrainerSettings(num_epochs=1, learning_rate=1e-2, max_tokens_per_micro_batch=60),
        algorithm=AlgorithmSettings(),
        num_steps=10,
        on_bad_numbers=lambda batch, reason: sys.exit(reason),
        ranks=ranks,
    )
    return Student(policy, trainer, ranks=ranks)


def state(of: Student) -> dict[str, Tensor]:
    tensors = {**of.policy.trainable_state(), **of.trainer.state()[0]}
    return {name: whole(tensor).clone() for name, tensor in tensors.items()}


def checkpoints(folder: Path, rank: int, groups: dict[int, dist.ProcessGroup]) -> None:
    """Two steps by each kind, its checkpoint read by each kind, and one step more."""

    def members(kind: str) -> Ranks | None:
        num = 1 if kind == "alone" else int(kind[0])
        if num == 1 or rank >= num:
            return None
        return ranks_of(rank, groups[num], is_sharded="sharded" in kind)

    def takes_part(kind: str) -> bool:
        return rank < (1 if kind == "alone" else int(kind[0]))

    found: dict[str, object] = {}
    for writer in CHECKPOINTS:
        at = folder / f"checkpoint {writer}"
        if takes_part(writer):
            one = student(folder, members(writer))
            for step in range(2):
                one.update(batch(step=step))
            one.save_checkpoint(at, step=2, scalars={"by": writer})
            found[f"{writer} writes"] = state(one)
            published = folder / f"published {writer}"
            published.mkdir(exist_ok=True)
            one.save(published)
            found[f"{writer} probes"] = one.probe_logprobs(range(3, 20), start=1)
        dist.barrier()
        for reader in CHECKPOINTS:
            if takes_part(reader):
                other = student(folder, members(reader))
                assert other.restore(at)[0] == 2
                found[f"{writer} to {reader} read"] = state(other)
                other.update(batch(step=2))
                found[f"{writer} to {reader} stepped"] = state(other)
            dist.barrier()
    if rank == 0:
        torch.save(found, folder / "checkpoints.pt")


def differing(folder: Path, ranks: Ranks) -> None:
    """One rank's weight is moved by its last bit."""
    policy = load(folder, "lora", is_tied=True, dtype="float32", ranks=ranks)
    weights = policy.trainable_state()
    name = sorted(weights)[1]
    if ranks.rank == 2:
        weights[name].view(torch.int32).flatten()[3] += 1
    try:
        ranks.check_alike(weights, when="after step 5")
    except Exception as error:
        (folder / f"differing-{ranks.rank}.txt").write_text(f"{name}\n{error}")


def ranks_of(rank: int, group: dist.ProcessGroup, *, is_sharded: bool) -> Ranks:
    return Ranks(
        rank=rank,
        size=group.size(),
        device=torch.device("cpu"),
        is_sharded=is_sharded,
        group=group,
    )


def run(folder: Path, rank: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    all_ranks = Ranks.join(
        rank=rank,
        size=WORLD,
        rendezvous=f"file://{folder}/rendezvous",
        device="cpu",
        is_sharded=False,
        tell=lambda phase: None,
    )
    groups = {2: dist.new_group([0, 1]), 3: all_ranks.group}
    for _, cuts in itertools.groupby(CASES, lambda case: case.name.rpartition("-")[0]):
        each = list(cuts)
        one = each[0]
        if rank >= one.num_ranks:
            continue
        ranks = ranks_of(rank, groups[one.num_ranks], is_sharded=one.is_sharded)
        policy = load(folder, one.tuning, is_tied=one.is_tied, dtype=one.dtype, ranks=ranks)
        for cut in each:
            found = gradient(policy, ranks, max_tokens=cut.max_tokens)
            if rank == 0:
                torch.save(found, folder / f"{cut.name}.pt")
    dist.barrier()
    differing(folder, all_ranks)
    checkpoints(folder, rank, groups)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    folder = Path(sys.argv[1])
    for is_tied, name in ((True, "tied"), (False, "untied")):
        qwen3(seed=0, vocab_size=VOCAB, tie_word_embeddings=is_tied).save_pretrained(folder / name)
    children = []
    for rank in range(WORLD):
        if (pid := os.fork()) == 0:
            run(folder, rank)
            os._exit(0)
        children.append(pid)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    sys.exit(0 if statuses == [0] * WORLD else 1)


if __name__ == "__main__":
    main()
