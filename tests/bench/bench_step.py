"""What scoring and updating an agentic batch costs, beside bare PyTorch and TRL's losses.

    python tests/bench/bench_step.py [--rounds 6] [--trajectories 8]

A student and a teacher of 70 M parameters with a vocabulary of 151,936; trajectories of lognormal
lengths, 10 to 17 % of their tokens sampled in three turns. In one process, in turn, several times
(fewer for what takes long), each twice and the second time counts, as a step of a run finds what
the one before left; a ratio is the median of those of each turn, which a machine that is slow for a
while changes little:

    rnow    the embedded engine scores all trajectories as it does when they wait for it, then
            `Trainer.update` with LoRA
    bare    one sequence at a time by hand, by what transformers and peft have: body, LM head on
            action positions, log-softmax; the simplest loss, its backward, clip, AdamW
    TRL     GKDTrainer's own loss (beta 1, reverse KL) on logits of all tokens from both networks,
            one sequence at a time, its backward, clip, AdamW. It compares whole distributions,
            rnow the sampled tokens: what differs is the objective, not its work alone
    chunked DistillationTrainer's own loss, the same divergence from hidden states, in tiles. On a
            GPU it takes action positions alone, elsewhere all of them, as here
    padded  bare, all sequences in one rectangle

Bounds: rnow ≤ 0.85 × bare, ≤ 0.15 × TRL; memory, each in a process of its own, ≤ 0.35 × TRL's;
the update alone at 8,192 tokens a sequence ≤ 1.02 × bare. Exit code 1 where one is broken. The
last two ways have no bound.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_update import peak_bytes
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from rnow.config.settings import AlgorithmSettings, TrainerSettings
from rnow.engines.base import ScoreRequest
from rnow.engines.local.head import Head
from rnow.engines.local.scoring import Text, read_text, score_texts
from rnow.engines.local.weights import load_model
from rnow.learner.trainer import Trainer
from rnow.records import Batch, RolloutId, ScoredTrajectory

sys.path.insert(0, str(Path(__file__).parents[1]))
from builders import load_policy, make_trajectory, model_settings, qwen3

VOCAB = 151_936
NOTE = "TRL compares whole distributions, rnow the tokens that were sampled: another objective."
BOUNDS = {"rnow/bare": 0.85, "rnow/trl": 0.15, "memory/trl": 0.35, "update at 8k/bare": 1.02}


def write_model(folder: Path) -> None:
    network = qwen3(
        vocab_size=VOCAB,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=16_384,
        initializer_range=0.02,
        tie_word_embeddings=True,
    )
    network.save_pretrained(folder)


def batch_of(lengths: list[int]) -> Batch:
    rng = np.random.default_rng(0)
    scored = []
    for rollout, length in enumerate(lengths):
        mask = np.zeros(length, dtype=np.bool_)
        sampled = int(length * rng.uniform(0.10, 0.17) / 3)
        for end in (length // 3, 2 * length // 3, length):
            mask[end - sampled : end] = True
        logprobs = np.where(mask, rng.uniform(-13, -11, length), np.nan).astype(np.float32)
        trajectory = make_trajectory(
            rng.integers(0, VOCAB, length),
            mask,
            id=RolloutId(0, 0, rollout),
            sampler_logprobs=logprobs,
        )
        scored.append(ScoredTrajectory(trajectory=trajectory, teacher_logprobs=logprobs - 1))
    return Batch(step=0, scored=tuple(scored))


def agentic_batch(count: int) -> Batch:
    drawn = np.random.default_rng(1).lognormal(np.log(400), 0.7, count)
    return batch_of([int(length) for length in drawn.clip(64, 3000)])


def plain_network(folder: Path) -> Any:
    """A student as transformers and peft make it, with the adapter's sizes of rnow's."""
    settings = model_settings()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(
        r=settings.qlora_rank,
        lora_alpha=settings.qlora_alpha or 2 * settings.qlora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config).get_base_model().eval()


class Lab:
    """Both networks, and the ways through one batch."""

    def __init__(self, folder: Path) -> None:
        self.teacher = load_model(folder, dtype=torch.float32, device="cpu", window=None)
        self.head = Head(self.teacher)
        self.policy = load_policy(folder)
        self.trainer = Trainer(
            self.policy,
            settings=TrainerSettings(num_epochs=1),
            algorithm=AlgorithmSettings(),
            num_steps=100,
            on_bad_numbers=lambda batch, reason: sys.exit(reason),
        )
        self.plain = plain_network(folder)
        self.parameters = [one for one in self.plain.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5)

    def rnow(self, batch: Batch) -> None:
        with torch.inference_mode():
            score_texts(self.head, [self._read(item) for item in batch.scored])
        self.trainer.update(batch)

    def _read(self, item: ScoredTrajectory) -> Text:
        actions = tuple(np.flatnonzero(item.trajectory.action_mask).tolist())
        ids = tuple(item.trajectory.token_ids.tolist())
        return read_text(
            self.teacher, ScoreRequest(token_ids=ids, start=actions[0], positions=actions)
        )

    def bare(self, batch: Batch, *, scores: bool = True) -> None:
        for item in batch.scored:
            ids = torch.from_numpy(item.trajectory.token_ids).long()[None]
            actions = torch.from_numpy(np.flatnonzero(item.trajectory.action_mask))
            if scores:
                with torch.inference_mode():
                    self._losses(self.teacher.base_model, self.teacher.lm_head, ids, actions)
            body, head = self.plain.base_model, self.plain.lm_head
            self._losses(body, head, ids, actions).sum().backward()
        self._step()

    def trl(self, batch: Batch) -> None:
        from trl.experimental.gkd import GKDTrainer

        for item in batch.scored:
            ids = torch.from_numpy(item.trajectory.token_ids).long()[None]
            mask = torch.from_numpy(item.trajectory.action_mask)[None]
            logits = self.plain(input_ids=ids, use_cache=False).logits
            with torch.no_grad():
                wanted = self.teacher(input_ids=ids, use_cache=False).logits
            GKDTrainer.generalized_jsd_loss(
                logits[:, :-1], wanted[:, :-1], ids.masked_fill(~mask, -100)[:, 1:], beta=1.0
            ).backward()
        self._step()

    def chunked(self, batch: Batch) -> None:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        for item in batch.scored:
            ids = torch.from_numpy(item.trajectory.token_ids).long()[None]
            mask = torch.from_numpy(item.trajectory.action_mask)[None]
            hidden = self.plain.base_model(input_ids=ids, use_cache=False).last_hidden_state
            with torch.no_grad():
                wanted = self.teacher.base_model(input_ids=ids, use_cache=False).last_hidden_state
            loss, *_ = _chunked_divergence_loss(
                hidden[:, :-1],
                wanted[:, :-1],
                self.plain.lm_head.weight,
                self.teacher.lm_head.weight,
                mask[:, 1:],
                beta=1.0,
            )
            loss.backward()
        self._step()

    def padded(self, batch: Batch) -> None:
        every = [torch.from_numpy(item.trajectory.token_ids).long() for item in batch.scored]
        masks = [torch.from_numpy(item.trajectory.action_mask) for item in batch.scored]
        ids = pad_sequence(every, batch_first=True)
        taken = pad_sequence(masks, batch_first=True)[:, 1:]
        real = pad_sequence([torch.ones_like(one) for one in every], batch_first=True)
        for network, scores in ((self.teacher, True), (self.plain, False)):
            with torch.inference_mode(scores):
                hidden = network.base_model(
                    input_ids=ids, attention_mask=real, use_cache=False
                ).last_hidden_state[:, :-1][taken]
                losses = cross_entropy(network.lm_head(hidden), ids[:, 1:][taken], reduction="sum")
        losses.backward()
        self._step()

    def _losses(
        self, body: torch.nn.Module, head: torch.nn.Module, ids: torch.Tensor, actions: torch.Tensor
    ) -> torch.Tensor:
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state[0, actions - 1]
        return cross_entropy(head(hidden), ids[0, actions], reduction="none")

    def _step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def in_turn(rounds: int, *ways: Callable[[], object]) -> np.ndarray:
    """Return the seconds of each way in each round, [rounds, ways]."""
    times = np.zeros((rounds, len(ways)))
    for seconds in times:
        for number, way in enumerate(ways):
            way()  # finds nothing warm: what came before it gave other memory back
            begin = time.perf_counter()
            way()
            seconds[number] = time.perf_counter() - begin
    return times


def ratio_of(times: np.ndarray, other: int) -> float:
    """Return how long the first way takes of another."""
    return float(np.median(times[:, 0] / times[:, other]))


def extra_memory(folder: Path, way: str, count: int) -> float:
    """Return the bytes that a step holds beyond the networks, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", way, "--trajectories", str(count)]
    done = subprocess.run([*command, "--folder", folder], check=True, stdout=subprocess.PIPE)
    return float(done.stdout.split()[-1])


def measure(folder: Path, *, rounds: int, count: int) -> dict[str, tuple[float, str]]:
    memory = {way: extra_memory(folder, way, count) for way in ("rnow", "trl")}
    lab, batch, long = Lab(folder), agentic_batch(count), batch_of([8192])
    step = partial(lab.rnow, batch)
    plain = in_turn(rounds, step, partial(lab.bare, batch))
    others = (lab.trl, lab.chunked, lab.padded)
    beside = in_turn(max(1, rounds // 3), step, *(partial(way, batch) for way in others))
    update = in_turn(
        -(-rounds // 2),
        lambda: lab.trainer.update(long),
        lambda: lab.bare(long, scores=False),
    )
    (ours, bare), (_, trl, chunked, padded) = np.median(plain, 0), np.median(beside, 0)
    long_ours, long_bare = np.median(update, 0)
    print(
        json.dumps(
            {
                name: times.round(3).tolist()
                for name, times in {
                    "rnow, bare": plain,
                    "rnow, others": beside,
                    "8k": update,
                }.items()
            }
        )
    )
    print(json.dumps({way: round(found / 1e9, 3) for way, found in memory.items()}), "extra GB")
    return {
        "rnow/bare": (ratio_of(plain, 1), f"rnow {ours:.2f} s, bare PyTorch {bare:.2f} s"),
        "rnow/trl": (ratio_of(beside, 1), f"TRL {trl:.2f} s"),
        "rnow/trl chunked": (ratio_of(beside, 2), f"DistillationTrainer's loss {chunked:.2f} s"),
        "rnow/padded": (ratio_of(beside, 3), f"bare PyTorch, padded, {padded:.2f} s"),
        "memory/trl": (memory["rnow"] / memory["trl"], f"TRL {memory['trl'] / 1e9:.2f} GB"),
        "update at 8k/bare": (
            ratio_of(update, 1),
            f"update {long_ours:.2f} s, bare PyTorch {long_bare:.2f} s",
        ),
    }


def main() -> None:
    from rows import row

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--trajectories", type=int, default=8)
    parser.add_argument("--memory-of", choices=["rnow", "trl"])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.memory_of:
        lab, batch = Lab(given.folder), agentic_batch(given.trajectories)
        before = peak_bytes()
        getattr(lab, given.memory_of)(batch)
        print(peak_bytes() - before)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        ratios = measure(Path(folder), rounds=given.rounds, count=given.trajectories)
    held = [
        row(name, ratio, "", most=BOUNDS.get(name), beside=beside, note=NOTE * ("trl" in name))
        for name, (ratio, beside) in ratios.items()
    ]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
