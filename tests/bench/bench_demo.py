"""The demo over several seeds, with the bounds that the README promises.

    python tests/bench/bench_demo.py --seeds 0 1 2
    python tests/bench/bench_demo.py --seeds 0 1 2 --lag 0 1

With both lags (trainer.max_policy_lag), the mean after with 1 is within a point of that with 0.

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


def run_demo(seed: int, folder: Path, *, lag: int) -> dict[str, float]:
    command = [sys.executable, "-m", "rnow", "demo", "--dir", folder, "--seed", seed, "--json"]
    command.append(f"trainer.max_policy_lag={lag}")
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max-seconds", type=float, default=240.0)
    parser.add_argument("--lag", type=int, nargs="+", choices=(0, 1), default=[0])
    parser.add_argument("--save", type=Path, help="write the results there, as JSON by seed")
    arguments = parser.parse_args()
    results: dict[int, list[dict[str, float]]] = {lag: [] for lag in arguments.lag}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for lag, of_lag in results.items():
                of_lag.append(run_demo(seed, Path(folder) / f"clinic-{seed}-{lag}", lag=lag))
    if arguments.save is not None:
        first = results[arguments.lag[0]]
        saved = {str(seed): result for seed, result in zip(arguments.seeds, first, strict=True)}
        arguments.save.write_text(json.dumps(saved))
    broken = []
    for lag, of_lag in results.items():
        broken += show(of_lag, seeds=arguments.seeds, lag=lag, max_seconds=arguments.max_seconds)
    if len(results) == 2 and mean_after(results[1]) < mean_after(results[0]) - 0.01:
        broken.append("lag 1 ends more than a point below lag 0")
    for sentence in broken:
        print(f"BOUND BROKEN: {sentence}")
    return bool(broken)


def show(
    results: list[dict[str, float]], *, seeds: list[int], lag: int, max_seconds: float
) -> list[str]:
    """Print the table of a lag; return the bounds that are broken."""
    print(f"\ntrainer.max_policy_lag {lag}\n")
    print("| seed | before | after | teacher | seconds |")
    print("|---|---|---|---|---|")
    for seed, result in zip(seeds, results, strict=True):
        print(
            f"| {seed} | {100 * result['before']:.1f} % | {100 * result['after']:.1f} % "
            f"| {100 * result['teacher']:.1f} % | {result['seconds']:.0f} |"
        )
    mean = mean_after(results)
    print(f"mean after: {100 * mean:.1f} %")
    return [
        f"lag {lag}: {sentence}"
        for holds, sentence in (
            (all(r["before"] <= 0.5 * r["teacher"] for r in results), "before > 0.5 x teacher"),
            (mean >= 0.95 * results[0]["teacher"], "mean after < 0.95 x teacher"),
            (all(r["after"] >= 0.9 for r in results), "a seed ended below 0.9"),
            (all(r["seconds"] <= max_seconds for r in results), "too slow"),
        )
        if not holds
    ]


def mean_after(results: list[dict[str, float]]) -> float:
    return sum(result["after"] for result in results) / len(results)


if __name__ == "__main__":
    sys.exit(main())
