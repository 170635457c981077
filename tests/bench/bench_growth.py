"""How the cost of a step grows: with trajectories, context, vocabulary and steps, one at a time.

    python tests/bench/bench_growth.py [--rounds 3]

Scoring and update of a student and a teacher of 8 M parameters in their layers, LoRA in float32, on
the CPU, from a middle of 8 trajectories of 512 tokens and a vocabulary of 32,768, a tenth of the
tokens sampled. Of steps: the loop's own time a step, its devices taking none, of a run of many
steps beside a run of few. Bound: twice the tokens of a step, by twice the trajectories, take at
most 2.4 times as long, and a step of a long run at most 1.5 times one of a short run.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rows import row

from rnow.config.settings import AlgorithmSettings, TrainerSettings
from rnow.engines.base import ScoreRequest
from rnow.engines.local.head import Head
from rnow.engines.local.scoring import read_text, score_texts
from rnow.engines.local.weights import load_model
from rnow.learner.trainer import Trainer
from rnow.records import Batch, RolloutId, ScoredTrajectory

sys.path.insert(0, str(Path(__file__).parents[1]))
from builders import load_policy, make_trajectory, qwen3
from overlap_lab import Lab

TRAJECTORIES, TOKENS, VOCAB = 8, 512, 32_768
SWEEPS = {
    "trajectories": (4, 8, 16, 32),
    "tokens a trajectory": (256, 512, 2048, 8192),
    "vocabulary": (8192, 32_768, 151_936),
}
MAX_DOUBLED, MAX_LONG = 2.4, 1.5


class Cost:
    """Seconds of scoring and updating a batch, with networks of a vocabulary."""

    def __init__(self, folder: Path, vocab: int) -> None:
        self.vocab = vocab
        qwen3(
            vocab_size=vocab,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=16_384,
            initializer_range=0.02,
            tie_word_embeddings=True,
        ).save_pretrained(folder)
        self.teacher = load_model(folder, dtype=torch.float32, device="cpu", window=None)
        self.head = Head(self.teacher)
        self.trainer = Trainer(
            load_policy(folder),
            settings=TrainerSettings(num_epochs=1),
            algorithm=AlgorithmSettings(),
            num_steps=1000,
            on_bad_numbers=lambda batch, reason: sys.exit(reason),
        )

    def seconds(self, *, trajectories: int, tokens: int, rounds: int) -> tuple[float, float]:
        """Return the least of several rounds: scoring, update."""
        batch = self.batch(trajectories, tokens)
        times = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            with torch.inference_mode():
                texts = []
                for item in batch.scored:
                    actions = tuple(np.flatnonzero(item.trajectory.action_mask).tolist())
                    ids = tuple(item.trajectory.token_ids.tolist())
                    request = ScoreRequest(token_ids=ids, start=actions[0], positions=actions)
                    texts.append(read_text(self.teacher, request))
                score_texts(self.head, texts)
            scored = time.perf_counter()
            self.trainer.update(batch)
            times.append((scored - started, time.perf_counter() - scored))
        scoring, updating = zip(*times[1:], strict=True)  # the first finds nothing warm
        return min(scoring), min(updating)

    def batch(self, trajectories: int, tokens: int) -> Batch:
        rng = np.random.default_rng(0)
        mask = np.zeros(tokens, dtype=np.bool_)
        for end in (tokens // 2, tokens):
            mask[end - tokens // 20 : end] = True
        scored = []
        for rollout in range(trajectories):
            logprobs = np.where(mask, rng.uniform(-12, -10, tokens), np.nan).astype(np.float32)
            trajectory = make_trajectory(
                rng.integers(0, self.vocab, tokens),
                mask,
                id=RolloutId(0, 0, rollout),
                sampler_logprobs=logprobs,
            )
            scored.append(ScoredTrajectory(trajectory=trajectory, teacher_logprobs=logprobs - 1))
        return Batch(step=0, scored=tuple(scored))


def sweep(name: str, folder: Path, *, rounds: int) -> list[float]:
    """Write a row for each value; return the seconds of each, scoring and update."""
    found = []
    middle = {"trajectories": TRAJECTORIES, "tokens a trajectory": TOKENS, "vocabulary": VOCAB}
    cost = None
    for value in SWEEPS[name]:
        now = {**middle, name: value}
        if cost is None or cost.vocab != now["vocabulary"]:
            cost = Cost(folder / f"{name}-{value}", now["vocabulary"])
        scoring, updating = cost.seconds(
            trajectories=now["trajectories"], tokens=now["tokens a trajectory"], rounds=rounds
        )
        beside = f"scoring {scoring:.3f} s, update {updating:.3f} s"
        row(f"{name} {value}", scoring + updating, "s a step", beside=beside)
        found.append(scoring + updating)
    return found


def own_seconds_a_step(num_steps: int) -> float:
    """Return what the loop itself takes a step: publication, journal, checks, saving."""
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), num_steps=num_steps, lag=0, prompts_a_step=8)
        started = time.perf_counter()
        asyncio.run(lab.train())
        return (time.perf_counter() - started) / num_steps


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        found = {name: sweep(name, Path(folder), rounds=rounds) for name in SWEEPS}
    own_seconds_a_step(20)  # what is loaded at first use
    short, long = (min(own_seconds_a_step(number) for _ in range(rounds)) for number in (50, 400))
    _, some, twice, _ = found["trajectories"]
    each = f"50 steps {1e3 * short:.1f} ms a step, 400 steps {1e3 * long:.1f} ms"
    held = [
        row("16 trajectories / 8", twice / some, "", most=MAX_DOUBLED),
        row("a step of 400 / a step of 50", long / short, "", most=MAX_LONG, beside=each),
    ]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
