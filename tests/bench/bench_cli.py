"""How long one waits for the command line: `rnow --help`, and the refusal without a GPU.

    python tests/bench/bench_cli.py

Seconds of CPU, since it waits for nothing else: what others do on the machine is no fault of it.
The best of five, or of fifteen where those are above the bounds that are promised (0.4 s and 3 s).
Exits 1 above them.
"""

import resource
import subprocess
import sys
from pathlib import Path

from rows import row

ROOT = Path(__file__).parents[2]
BOUNDS = {("--help",): 0.4, ("run", str(ROOT)): 3.0}


def best_seconds(words: tuple[str, ...], *, bound: float) -> float:
    seconds: list[float] = []
    while len(seconds) < 5 or (min(seconds) > bound and len(seconds) < 15):
        before = _cpu_seconds()
        subprocess.run([sys.executable, "-m", "rnow", *words], capture_output=True)
        seconds.append(_cpu_seconds() - before)
    return min(seconds)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    held = [
        row(f"rnow {words[0]}", best_seconds(words, bound=bound), "s of CPU", most=bound)
        for words, bound in BOUNDS.items()
    ]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main())
