"""Make the tokenizer, the teacher and the student of the clinic project.

    python scripts/make_clinic_models.py | tee docs/clinic-models.log     (minutes, on two cores)

Both models learn the same skill from the same kind of examples: read the trial's page, if need be
the drug's page, copy the fact. Every batch is about trials that were never seen before, none of
which are in the shipped site. The student then gets bad habits: a few more examples, in most of
which the second page is not read and the first page's misleading fact is the answer. The skill
stays. What the student lacks is the policy, and that is what the demo's on-policy distillation
repairs; it does not show that distillation teaches a skill which the student never had.
"""

import argparse
import multiprocessing
import random
import re
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from clinic.browsing import browse_all, held_out, pages_of, shares
from clinic.learn import Draw, Encoder, Lessons, learn
from clinic.network import Shape, Weights, random_weights
from clinic.saving import save_model
from clinic.text import FastTexts, chat_template, conversation, misled_conversation
from clinic.tokenizer import ADDED, SPECIAL, learn_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from rnow.templates.clinic.make_site import QUESTIONS, Trial, make_trials, make_world

MODELS = Path(__file__).parents[1] / "src" / "rnow" / "templates" / "clinic" / "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What one model is made of. Whether a seed learns to copy fast is luck; these two do."""

    hidden: int
    seed: int
    skill_steps: int


RECIPES = {
    "teacher": Recipe(hidden=128, seed=0, skill_steps=250),
    "student": Recipe(hidden=96, seed=30, skill_steps=350),
}
VOCAB_SIZE = 1024
BATCH_SIZE = 32
ONE_PAGE_FIRST = 0.1  # share of the steps with one-page questions only
SKILL_LEARNING_RATE = 3e-3
HABIT_STEPS = 40
HABIT_LEARNING_RATE = 3e-4  # more, and the skill suffers: the student then does not recover
MISLED = {"ingredient": 0.4, "company": 0.75, "date": 0.75}  # share of bad examples


class Log:
    """Prints lines under the name of the model that they are about."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, line: str) -> None:
        print(f"{self._name:8s} {line}", flush=True)


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


def make_model(name: str, seed: int, skilled_folder: Path | None) -> tuple[Weights, Shape]:
    """Make one model; runs in a process of its own, on one thread."""
    torch.set_num_threads(1)
    texts = FastTexts()
    taken = words_of([trial for part in make_world(0) for trial in part])
    encoder = Encoder(make_tokenizer(texts, seed=seed))
    recipe = RECIPES[name]
    own_seed = seed * 100 + recipe.seed
    shape = Shape(
        vocab_size=encoder.tokenizer.get_vocab_size(),
        hidden=recipe.hidden,
        layers=3,
        heads=4,
        kv_heads=2,
        inner=3 * recipe.hidden,
    )
    log = Log(name)
    weights = random_weights(shape, seed=own_seed)
    log(f"{sum(part.numel() for part in weights.values())} parameters, {shape}")
    kept = None if skilled_folder is None else skilled_folder / f"{name}.safetensors"
    if kept is not None and kept.exists():
        weights = load_file(kept)
        log(f"skill taken from {kept}")
    else:
        draw = skilled(texts, taken)
        lessons = Lessons(
            steps=recipe.skill_steps, learning_rate=SKILL_LEARNING_RATE, seed=own_seed + 1
        )
        learn(weights, shape, encoder, draw, lessons=lessons, log=log)
        log(f"with the skill, greedy: {measure((weights, shape), encoder, texts)}")
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, kept)
    if name == "student":
        draw = misled(texts, taken)
        lessons = Lessons(steps=HABIT_STEPS, learning_rate=HABIT_LEARNING_RATE, seed=own_seed + 2)
        learn(weights, shape, encoder, draw, lessons=lessons, log=log)
        log(f"with bad habits, greedy: {measure((weights, shape), encoder, texts)}")
        log(f"with bad habits, at T=1: {measure((weights, shape), encoder, texts, seed=0)}")
    return weights, shape


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the models of the clinic project.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=MODELS)
    parser.add_argument("--skilled", type=Path, help="folder to keep and reuse skilled models in")
    arguments = parser.parse_args()
    started = time.monotonic()
    texts = FastTexts()
    world = [trial for part in make_world(0) for trial in part]
    texts.check(world[:20])
    tokenizer = make_tokenizer(texts, seed=arguments.seed)
    print(f"seed {arguments.seed}, torch {torch.__version__}")
    print(f"tokenizer: {tokenizer.get_vocab_size()} tokens")
    for task in QUESTIONS:
        size = len(tokenizer.encode(conversation(texts, world[0], task)).ids)
        print(f"  a right {task} rollout: {size} tokens", flush=True)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        jobs = {
            name: processes.submit(make_model, name, arguments.seed, arguments.skilled)
            for name in ("teacher", "student")
        }
        for name, job in jobs.items():
            weights, shape = job.result()
            folder = arguments.output / name
            save_model(weights, shape, tokenizer, folder, chat_template=chat_template())
            size = (folder / "model.safetensors").stat().st_size
            print(f"{name}: {size} bytes of weights in {folder.name}/")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
