"""What steps that overlap gain where vLLM samples and scores: lag 1 beside lag 0 of the demo.

    python tests/bench/bench_lag_vllm.py --python .venv-vllm/bin/python [--steps 8]

Two servers, student's and teacher's, and the trainer share this machine's cores, so that little can
be gained where there are few: seconds have no bound here, but what must not change has one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rows import row

from rnow.commands.init import init_project

NOTE = "Servers and trainer share the cores: on GPUs of their own they would not."
MAX_MISMATCH_KL = 0.01


def train(project: Path, python: str, *, lag: int, num_steps: int) -> tuple[float, list[Any]]:
    """Return the seconds of a step, the first apart, and the run's lines."""
    words = (
        *("run", project, "--name", f"lag-{lag}", "engine.kind=vllm", f"engine.python={python}"),
        *("engine.dtype=float32", f"trainer.max_steps={num_steps}"),
        f"trainer.max_policy_lag={lag}",
    )
    metrics = project / "runs" / f"lag-{lag}" / "metrics.jsonl"
    ends: list[float] = []
    with subprocess.Popen([sys.executable, "-m", "rnow", *map(str, words)]) as process:
        while process.poll() is None:
            num = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            ends += [time.monotonic()] * (num - len(ends))
            time.sleep(0.02)
    assert process.returncode == 0, f"lag {lag} ended with {process.returncode}"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return (ends[-1] - ends[0]) / (len(ends) - 1), lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=".venv-vllm/bin/python")
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    python = str(Path(given.python).absolute())
    seconds, held = {}, []
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "clinic"
        init_project(project, template="clinic")
        for lag in (0, 1):
            seconds[lag], lines = train(project, python, lag=lag, num_steps=given.steps)
            worst = max(line["mismatch_kl"] for line in lines)
            drift = sum(line["tokens/drift"] for line in lines)
            held += [
                row(f"lag {lag}: mismatch_kl", worst, "nats", most=MAX_MISMATCH_KL),
                row(f"lag {lag}: tokens/drift", drift, "tokens", most=0),
            ]
    beside = f"a step: lag 0 {seconds[0]:.2f} s, lag 1 {seconds[1]:.2f} s"
    held.append(row("lag 1 / lag 0 on vLLM", seconds[1] / seconds[0], "", beside=beside, note=NOTE))
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
