"""Every measurement with bounds, as one table; exit code 1 where one is broken.

    python tests/bench/run_all.py [--only step view] [--resume] [--file bench.json]

Each is a child that ends by itself or at its deadline; what it found is in bench.json after each,
with machine, versions, date and commit, what it printed in bench/. What `--only` leaves out keeps
its results; `--resume` also keeps those whose bounds held, as long as nothing that they measure
has changed.
"""

import argparse
import sys
from pathlib import Path

from parts import ROOT, Part, Run, end_on_sigterm

VLLM = str(ROOT / ".venv-vllm" / "bin" / "python")


def no_vllm() -> str:
    return "" if Path(VLLM).exists() else "no .venv-vllm: scripts/setup_vllm.sh makes it"


PARTS = (
    Part(name="cli", command=("bench_cli.py",), timeout_s=300),
    Part(name="view", command=("bench_view.py",), timeout_s=300),
    Part(name="update", command=("bench_update.py",), timeout_s=1200),
    Part(name="step", command=("bench_step.py",)),
    Part(name="growth", command=("bench_growth.py",)),
    Part(name="local", command=("bench_local_engine.py",), timeout_s=1200),
    Part(name="controller", command=("bench_controller.py",), timeout_s=1200),
    Part(name="nodes", command=("bench_controller.py", "--nodes", "64"), timeout_s=1200),
    Part(
        name="rollouts",
        command=("bench_controller.py", "--nodes", "64", "--rollouts", "8192"),
        timeout_s=1200,
    ),
    Part(name="overlap", command=("bench_overlap.py",), timeout_s=1200),
    Part(name="report", command=("bench_report.py",), timeout_s=1200),
    Part(name="endings", command=("bench_endings.py",), timeout_s=900),
    Part(name="browser", command=("bench_browser.py",)),
    Part(name="vllm", command=("bench_vllm.py", "--python", VLLM), lacking=no_vllm),
    Part(name="demo", command=("bench_demo.py", "--seeds", "0", "1", "2")),
    Part(
        name="demo-vllm",
        command=("bench_demo_vllm.py", "--python", VLLM, "--seeds", "0", "1", "2"),
        timeout_s=7200,
        lacking=no_vllm,
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--file", type=Path, default=ROOT / "bench.json")
    given = parser.parse_args()
    chosen = [part for part in PARTS if part.name in given.only]
    run = Run(parts=chosen, file=given.file, resume=given.resume, python=VLLM)
    end_on_sigterm()
    return int(not run.all())


if __name__ == "__main__":
    sys.exit(main())
