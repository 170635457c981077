"""Every template × vocabulary × tools: `rnow check` and `rnow run` must say the same of each.

    python tests/bench/bench_check_matrix.py [--part 0 --parts 1]

Prints a line for each cell where they differ, and the counts; exit code 1 if one did.
"""

import argparse
import gc
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""
from check_matrix import CELLS, try_cell
from transformers.utils import logging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    options = parser.parse_args()
    logging.disable_progress_bar()
    gc.freeze()
    counts: Counter[str] = Counter()
    for cell in CELLS[options.part :: options.parts]:
        with tempfile.TemporaryDirectory() as folder:
            verdict = try_cell(Path(folder) / "project", cell)
        if verdict.disagreement is not None:
            print(f"{cell}: {verdict.disagreement}", flush=True)
            counts["differ"] += 1
        elif verdict.problems:
            counts["refused by both"] += 1
        else:
            counts["ran"] += 1
    times = os.times()
    seconds = times.user + times.system + times.children_user + times.children_system
    print(f"{dict(sorted(counts.items()))}, {seconds:.0f} s of CPU")
    sys.exit(1 if counts["differ"] else 0)


if __name__ == "__main__":
    main()
