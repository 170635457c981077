"""Kill a run of 12 steps at 20 random times, resuming each time anew; every bit must be the same.

    python tests/bench/soak_kills.py --seed 0 --kills 20 --lag 1

The times are drawn from the seed over the length of an uninterrupted run, and printed.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from short_runs import assert_same_run, rnow

from rnow.commands.init import init_project

NUM_STEPS = 12
RUN = (
    "data.batch_size=2",
    "data.group_size=2",
    f"trainer.max_steps={NUM_STEPS}",
    "trainer.eval_step=4",
    "trainer.save_step=5",
)


def kill_after(seconds: float, *words: object) -> bool:
    """Return whether the run was killed; False if it had ended by then."""
    with subprocess.Popen(
        [sys.executable, "-m", "rnow", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.wait(timeout=seconds) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--lag", type=int, choices=(0, 1), default=0, help="max_policy_lag")
    options = parser.parse_args()
    settings = (*RUN, f"trainer.max_policy_lag={options.lag}")
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "clinic"
        init_project(project, template="clinic")
        held_out = (project / "val.jsonl").read_text().splitlines(keepends=True)
        (project / "val.jsonl").write_text("".join(held_out[:3]))
        started = time.monotonic()
        rnow("run", project, "--name", "whole", *settings)
        length = time.monotonic() - started
        print(f"seed {options.seed}: uninterrupted {length:.1f} s")
        for number in range(options.kills):
            words = ("run", project, "--name", f"killed-{number}", *settings)
            runs, seconds = project / "runs", draw.uniform(0.0, length)
            while not kill_after(seconds, *words):
                shutil.rmtree(runs / f"killed-{number}")  # a run that had ended shows nothing
                seconds *= 0.8
            rnow(*words)
            assert_same_run(runs / "whole", runs / f"killed-{number}", num_steps=NUM_STEPS)
            print(f"kill {number}: after {seconds:.2f} s; the same bits", flush=True)


if __name__ == "__main__":
    main()
