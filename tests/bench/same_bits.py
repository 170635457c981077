"""Five steps of the demo with the code of a commit and with the code here: the same bits, or not.

    python tests/bench/same_bits.py --before 2349dbc

What a change of the house must leave alone: seed 0, one thread, the trained adapter and the
optimizer's state, compared byte by byte. Exit code 1 where a byte differs.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def train(source: Path, folder: Path, *, steps: int, overrides: list[str]) -> dict[str, str]:
    """Return the digest of each file of weights after `steps` steps with the code in `source`."""
    environ = {
        **os.environ,
        "PYTHONPATH": str(source / "src"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    for words in (
        ("init", folder, "--template", "clinic"),
        ("run", folder, "--name", "bits", f"trainer.max_steps={steps}", *overrides),
    ):
        command = [sys.executable, "-m", "rnow", *map(str, words)]
        subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    run = folder / "runs" / "bits"
    weights = sorted(run.glob("**/*.safetensors"))
    assert weights, f"{run} holds no weights"
    return {
        str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in weights
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", required=True, help="the commit to compare with")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        before = Path(temporary) / "before"
        subprocess.run(
            ["git", "worktree", "add", "--detach", before, given.before], cwd=ROOT, check=True
        )
        try:
            results = [
                train(source, Path(temporary) / name, steps=given.steps, overrides=given.overrides)
                for source, name in ((before, "old"), (ROOT, "new"))
            ]
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    old, new = results
    for name in sorted(old.keys() | new.keys()):
        same = old.get(name) == new.get(name)
        print(f"{'same' if same else 'OTHER'}  {name}  {new.get(name, 'missing')[:16]}")
    sys.exit(old != new)


if __name__ == "__main__":
    main()
