"""What a run takes, against what its plan says after three measured steps: within a factor 1.5.

    python tests/bench/bench_estimates.py [--runs demo smollm2 vllm] [--python PATH]

    demo      the clinic's project, 20 steps, evaluated every 10
    smollm2   a network of SmolLM2-135M's sizes, random weights, full tuning, 6 steps
    vllm      the clinic's project on two vLLM servers, 8 steps

A run goes to its end; then its first three steps alone are given to `rnow check` as those of an
earlier run, and what check says of the whole is compared with what it took: tokens sampled and
read, those of evaluations too, and seconds from the first step's begin to the run's end. Before any
step the same is printed, with what it is from, and has no bound. Exits 1 above the factor.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnow.commands.init import init_project
from rnow.runs.archive import journals
from rnow.runs.journal import read_journal

BOUND = 1.5
NUM_MEASURED = 3
ENTRIES = ("config.yml", "plan.json")
VOCAB_SIZE = 49152  # of SmolLM2
RUNS = ("demo", "smollm2", "vllm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a whole run was: seconds, tokens."""

    seconds: float
    sampled: float
    read: float


def rnow(*words: object) -> str:
    command = [sys.executable, "-m", "rnow", *map(str, words)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


def plan_of(project: Path, overrides: Sequence[str]) -> dict[str, Any]:
    done = rnow("check", project, *overrides, "--offline", "--json")
    plan: dict[str, Any] = json.loads(done)["plan"]
    return plan


def train(project: Path, overrides: Sequence[str]) -> Taken:
    """Run to the end; the clock starts with the first step, when the engines are up."""
    run = project / "runs" / "whole"
    command = [sys.executable, "-m", "rnow", "run", str(project), "--name", "whole", *overrides]
    began = None
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            if began is None and (run / "metrics.jsonl").exists():
                lines = (run / "metrics.jsonl").read_text().splitlines()
                if lines:
                    began = time.monotonic() - json.loads(lines[0])["time/step"]
            time.sleep(0.05)
    ended = time.monotonic()
    assert process.returncode == 0, f"{command} ended with {process.returncode}"
    assert began is not None
    return Taken(seconds=ended - began, **_tokens(run))


def _tokens(run: Path) -> dict[str, float]:
    """Count what was sampled and read in the steps; evaluations have about as many a rollout."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sampled = sum(line["tokens/action"] for line in lines)
    whole = sum(line["tokens/total"] for line in lines)
    assert sum(len(read_journal(journal)) for journal in journals(run / "trajectories")) == sum(
        line["rollout/trajectories"] for line in lines
    )
    return {"sampled": sampled, "read": whole - sampled}


def keep_first_steps(project: Path) -> None:
    """Leave of the whole run what was there after its first three steps."""
    whole, first = project / "runs" / "whole", project / "runs" / "first"
    first.mkdir()
    for name in ENTRIES:
        shutil.copyfile(whole / name, first / name)
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    (first / "metrics.jsonl").write_text("".join(lines[:NUM_MEASURED]))
    shutil.move(whole, project / "whole")


def factor(said: float, was: float) -> float:
    return max(said, was) / max(1e-9, min(said, was))


def compare(name: str, project: Path, overrides: Sequence[str]) -> list[str]:
    """Print a line a number; return what is beyond the bound."""
    before = plan_of(project, overrides)
    taken = train(project, overrides)
    keep_first_steps(project)
    after = plan_of(project, overrides)
    # The plan counts evaluations too, the run's lines do not.
    share = after["rollouts"]["value"] / (
        after["rollouts"]["value"] + after["evaluations"]["value"]
    )
    beyond = []
    for key, was, scale in (
        ("total_s", taken.seconds, 1.0),
        ("tokens_out", taken.sampled, share),
        ("tokens_in", taken.read, share),
    ):
        early, late = (plan[key]["value"] * scale for plan in (before, after))
        print(
            f"| {name} | {key} | {early:,.0f} ({before[key]['basis']}) | {late:,.0f} "
            f"({after[key]['basis']}) | {was:,.0f} | {factor(late, was):.2f} |",
            flush=True,
        )
        if factor(late, was) > BOUND:
            beyond.append(f"{name}: {key} {late:.0f} said, {was:.0f} was")
        if not after[key]["basis"].startswith("from "):
            beyond.append(f"{name}: {key} {after[key]['basis']}")
    return beyond


def make_demo(folder: Path) -> tuple[Path, list[str]]:
    init_project(folder / "clinic", template="clinic")
    return folder / "clinic", ["trainer.eval_step=10"]


def make_vllm(folder: Path, python: str) -> tuple[Path, list[str]]:
    init_project(folder / "clinic-vllm", template="clinic")
    overrides = ["engine.kind=vllm", f"engine.python={python}", "trainer.max_steps=8"]
    return folder / "clinic-vllm", [*overrides, "engine.dtype=float32"]


def make_smollm2(folder: Path) -> tuple[Path, list[str]]:
    """Make the clinic's project with a student and a teacher of SmolLM2-135M's sizes."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    project = folder / "smollm2"
    init_project(project, template="clinic")
    for seed, name in enumerate(("student", "teacher")):
        place = project / "models" / name
        tokenizer = AutoTokenizer.from_pretrained(str(place))
        # All that random weights sample must be tokens.
        tokenizer.add_tokens([f"word{number}" for number in range(VOCAB_SIZE - len(tokenizer))])
        shutil.rmtree(place)
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(place)
        tokenizer.save_pretrained(place)
    return project, [
        "model.tuning=full",
        "data.batch_size=1",
        "data.group_size=2",
        "rollout.max_turns=1",
        "rollout.max_tokens=16",
        "trainer.learning_rate=1e-6",
        "trainer.max_steps=6",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--python", default=".venv-vllm/bin/python")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    arguments = parser.parse_args()
    beyond: list[str] = []
    print("| run | number | before any step | after three steps | was | factor |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for run in arguments.runs:
            if run == "vllm":
                made = make_vllm(folder, str(Path(arguments.python).absolute()))
            else:
                made = {"demo": make_demo, "smollm2": make_smollm2}[run](folder)
            beyond += compare(run, *made)
    for sentence in beyond:
        print(f"BOUND BROKEN: {sentence}")
    return bool(beyond)


if __name__ == "__main__":
    sys.exit(main())
