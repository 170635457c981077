"""The demo over several seeds, with the bounds that the README promises.

    python tests/bench/bench_demo.py --seeds 0 1 2

Prints the README's table; exits 1 if a bound does not hold: before at most half of the teacher,
after at least 0.95 of the teacher as a mean and 0.9 for each seed, 240 s for training and evals on
two cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def run_demo(seed: int, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "rnow", "demo", "--dir", folder, "--seed", seed, "--json"]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-seconds", type=float, default=240.0)
    parser.add_argument("--save", type=Path, help="write the results there, as JSON by seed")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            results.append(run_demo(seed, Path(folder) / f"clinic-{seed}"))
    if arguments.save is not None:
        saved = {str(seed): result for seed, result in zip(arguments.seeds, results, strict=True)}
        arguments.save.write_text(json.dumps(saved))
    print("| seed | before | after | teacher | seconds |")
    print("|---|---|---|---|---|")
    for seed, result in zip(arguments.seeds, results, strict=True):
        print(
            f"| {seed} | {100 * result['before']:.1f} % | {100 * result['after']:.1f} % "
            f"| {100 * result['teacher']:.1f} % | {result['seconds']:.0f} |"
        )
    mean = sum(result["after"] for result in results) / len(results)
    print(f"mean after: {100 * mean:.1f} %")
    broken = [
        sentence
        for holds, sentence in (
            (all(r["before"] <= 0.5 * r["teacher"] for r in results), "before > 0.5 x teacher"),
            (mean >= 0.95 * results[0]["teacher"], "mean after < 0.95 x teacher"),
            (all(r["after"] >= 0.9 for r in results), "a seed ended below 0.9"),
            (all(r["seconds"] <= arguments.max_seconds for r in results), "too slow"),
        )
        if not holds
    ]
    for sentence in broken:
        print(f"BOUND BROKEN: {sentence}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
