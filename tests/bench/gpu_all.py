"""All that only a GPU can show, in parts that end by themselves: `make gpu`.

    python tests/bench/gpu_all.py [--resume] [--only attention] [--python .venv-vllm/bin/python]
    python tests/bench/gpu_all.py --cpu        what of it a CPU can run: shows that the parts work

Each part is a child with a deadline of its own below 8 minutes; after 25 minutes no more is begun,
and the next call with --resume goes on with what is left, or did not hold. gpu.json has what was
found, with card, driver and versions; gpu/ what was printed. Nothing is fetched, and no weights are
needed: docs/gpu.md lists what to bring. Exit code 1 where a claim does not hold or a part is left,
2 where there is no CUDA device.
"""

import argparse
import sys
from pathlib import Path

from parts import ROOT, Part, Run, end_on_sigterm

from rnow.plan.devices import find_devices, usable_gpus

BUDGET_S = 25 * 60
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
# Script and its parts, each with its deadline. CPU: those that `--cpu` runs too.
NETWORK = {
    "gpu_smoke.py": {"devices": 60, "gradient": 120, "resume": 240, "demo": 300},
    "gpu_kernels.py": {"attention": 90, "head": 90, "bits": 120},
    "gpu_ranks.py": {"replicated": 180, "sharded": 180},
}
UPDATES = {"Qwen3-8B": 300, "Qwen3-4B": 240, "Qwen3-1.7B": 240}
SERVED = {
    "gpu_vllm.py": {
        "decode": 180,
        "precision": 300,
        "compact": 180,
        "cut": 180,
        "servers": 300,
        "deterministic": 460,
        "bfloat16": 240,
        "float32": 240,
        "demo": 420,
    },
    "gpu_served.py": {
        "scored": 180,
        "prefix": 180,
        "preempted": 180,
        "parallel": 300,
        "resume": 460,
        "lag": 460,
    },
}
TWO_GPUS = {"replicated", "sharded", "parallel"}
CPU = {
    *("gradient", "attention", "head", "bits", "replicated", "sharded", "decode", "precision"),
    *("compact", "cut", "servers", "deterministic", "scored", "prefix", "preempted"),
}


def make_parts(python: Path = VLLM, *, cpu: bool = False) -> tuple[Part, ...]:
    """Return the parts; those that say something of the trainer first."""
    made = []
    for scripts, words in ((NETWORK, ()), (SERVED, ("--python", str(python)))):
        for script, timeouts in scripts.items():
            for name, timeout_s in timeouts.items():
                command = (script, "--only", name, *words, *(("--cpu",) if cpu else ()))
                made.append(_part(name, command, timeout_s, python=python, cpu=cpu))
    for model, timeout_s in UPDATES.items():
        command = ("gpu_smoke.py", "--only", "update", "--models", model)
        made.append(_part("update", command, timeout_s, python=python, cpu=cpu, of=model))
    return tuple(made)


def _part(
    name: str, command: tuple[str, ...], timeout_s: float, *, python: Path, cpu: bool, of: str = ""
) -> Part:
    def lacking() -> str:
        if cpu and name not in CPU:
            return "nothing that a CPU can show"
        if command[0] in SERVED and not python.exists():
            return f"no vLLM: {python} does not exist; --python names an interpreter that has it"
        num_gpus = len(usable_gpus(find_devices()).gpus)
        if name in TWO_GPUS and not cpu and num_gpus < 2:
            return f"needs 2 GPUs, and {num_gpus} is here"
        return ""

    area = "served " if command[0] in SERVED else ""
    full = f"{area}{name}{' ' + of if of else ''}"
    return Part(name=full, command=command, timeout_s=timeout_s, lacking=lacking)


PARTS = make_parts()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="to try the parts themselves")
    parser.add_argument("--python", type=Path, default=VLLM, help="interpreter that has vLLM")
    parser.add_argument("--file", type=Path, default=ROOT / "gpu.json")
    given = parser.parse_args()
    found = usable_gpus(find_devices())
    if not given.cpu and not any(gpu.kind == "cuda" for gpu in found.gpus):
        print(f"no CUDA device here: {found.reason}", file=sys.stderr)
        return 2
    python = given.python.absolute()
    chosen = [part for part in make_parts(python, cpu=given.cpu) if part.name in given.only]
    run = Run(
        parts=chosen,
        file=given.file,
        resume=given.resume,
        budget_s=BUDGET_S,
        python=str(python),
    )
    end_on_sigterm()
    return int(not run.all())


if __name__ == "__main__":
    sys.exit(main())
