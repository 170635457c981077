"""Make the tokenizer, the teacher and the student of the clinic project.

    python scripts/make_clinic_models.py        about ten minutes on two cores; log: docs/clinic-models.log

Both models learn the same skill from the same kind of examples: read the trial's page, if need be the drug's page,
copy the fact. Each batch is about trials that were never seen before and that are not in the shipped site. The
student then gets bad habits: some more examples, in most of which the second page is not read and the first page's
misleading fact is the answer. The skill stays: what the student lacks is the policy, and this is what the demo's
on-policy distillation repairs. It does not show that distillation teaches a skill that the student never had.

Exits with 1 if what came out is not fit for the demo.
"""

import argparse
import json
import os
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from clinic.browsing import browse_all, held_out, pages_of, shares
from clinic.learn import Draw, Encoder, learn
from clinic.network import Shape, Weights, forward, logits, random_weights
from clinic.saving import save_model
from clinic.text import FastTexts, chat_template, conversation, misled_conversation
from clinic.tokenizer import ADDED, SPECIAL, learn_tokenizer, save_tokenizer
from tokenizers import Tokenizer

from rnow.templates.clinic.make_site import QUESTIONS, Trial, make_trials, make_world

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "src" / "rnow" / "templates" / "clinic" / "models"
LOG = ROOT / "docs" / "clinic-models.log"

VOCAB_SIZE = 1024
BATCH_SIZE = 32
SKILL_STEPS = 300
ONE_PAGE_FIRST = 0.1  # share of the steps with one-page questions only
SKILL_LEARNING_RATE = 3e-3
HABIT_STEPS = 40
HABIT_LEARNING_RATE = 1e-3
MISLED = {"ingredient": 0.5, "company": 0.85, "date": 0.85}  # share of bad examples

Log = Callable[[str], None]


def skilled(texts: FastTexts, taken: set[str]) -> Draw:
    """Return what draws batches of right answers."""

    def draw(rng: random.Random, progress: float) -> list[str]:
        tasks = ["ingredient"] if progress < ONE_PAGE_FIRST else list(QUESTIONS)
        trials = make_trials(rng, BATCH_SIZE, taken=set(taken))
        return [conversation(texts, trial, rng.choice(tasks)) for trial in trials]

    return draw


def misled(texts: FastTexts, taken: set[str]) -> Draw:
    """Return what draws batches in which most answers stop at the first page."""

    def draw(rng: random.Random, progress: float) -> list[str]:
        drawn = []
        for trial in make_trials(rng, BATCH_SIZE, taken=set(taken)):
            task = rng.choice(list(QUESTIONS))
            says = misled_conversation if rng.random() < MISLED[task] else conversation
            drawn.append(says(texts, trial, task))
        return drawn

    return draw


def make_tokenizer(texts: FastTexts, *, seed: int) -> Tokenizer:
    """Learn the tokenizer from rollouts about invented trials."""
    borders = "|".join(map(re.escape, SPECIAL + ADDED))
    trials = make_trials(random.Random(seed), 400, taken=set())
    stretches = [
        stretch
        for trial in trials
        for task in QUESTIONS
        for stretch in re.split(borders, conversation(texts, trial, task))
        if stretch
    ]
    return learn_tokenizer(stretches, vocab_size=VOCAB_SIZE)


def words_of(trials: list[Trial]) -> set[str]:
    """Return every name and number of the shipped site: none of them may be practised on."""
    return {
        word
        for trial in trials
        for word in (
            trial.nct,
            trial.ingredient,
            trial.comparator,
            trial.sponsor.split()[0],
            trial.company.split()[0],
        )
    }


def measure(
    model: tuple[Weights, Shape], encoder: Encoder, texts: FastTexts, *, seed: int | None = None
) -> dict[str, float]:
    """Return accuracy and more on the held-out questions: greedy, or sampled with `seed`."""
    val = make_world(0)[1]
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return shares(
        browse_all(
            model, encoder, texts, held_out(val), pages=pages_of(texts, val), generator=generator
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the models of the clinic project.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=MODELS)
    parser.add_argument("--log", type=Path, default=LOG)
    arguments = parser.parse_args()
    started = time.monotonic()
    lines: list[str] = []

    def log(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    log(f"seed {arguments.seed}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    texts = FastTexts()
    world = [trial for part in make_world(0) for trial in part]
    texts.check(world[:20])
    taken = words_of(world)
    tokenizer = make_tokenizer(texts, seed=arguments.seed)
    encoder = Encoder(tokenizer)
    log(f"tokenizer: {tokenizer.get_vocab_size()} tokens")
    for task in QUESTIONS:
        size = len(tokenizer.encode(conversation(texts, world[0], task)).ids)
        log(f"  a right {task} rollout is {size} tokens")

    results = {}
    for place, (name, hidden) in enumerate((("teacher", 128), ("student", 96))):
        seed = arguments.seed * 100 + 10 * place
        shape = Shape(
            vocab_size=tokenizer.get_vocab_size(),
            hidden=hidden,
            layers=3,
            heads=4,
            kv_heads=2,
            inner=3 * hidden,
        )
        weights = random_weights(shape, seed=seed)
        log(f"{name}: {sum(part.numel() for part in weights.values())} parameters, {shape}")
        model = (weights, shape)
        common = {"batch": BATCH_SIZE}
        learn(
            weights,
            shape,
            encoder,
            skilled(texts, taken),
            steps=SKILL_STEPS,
            learning_rate=SKILL_LEARNING_RATE,
            seed=seed + 1,
            log=log,
        )
        log(f"{name} with the skill, held-out, greedy: {measure(model, encoder, texts)}")
