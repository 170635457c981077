"""Short runs of the demo project on real processes, and what two of them must have in common."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from rnow.records import ScoredTrajectory
from rnow.runs.journal import read_journal


def rnow(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Call `rnow` and keep what it says on stdout and stderr apart."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder) / "stdout", Path(folder) / "stderr"
        status = shared_cli().call(*words, stdout=stdout, stderr=stderr)
        said = (stdout.read_text(), stderr.read_text())
    done = subprocess.CompletedProcess([*map(str, words)], status, *said)
    if check:
        assert status == 0, done.stdout + done.stderr
    return done


@dataclass(frozen=True)
class Done:
    status: int  # exit code, or minus the signal
    output: str  # stdout and stderr


class ForkedCli:
    """Calls of `rnow` in processes of their own that need not import anything: forked_cli.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forked_cli.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: object, **environ: str) -> Done:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "output"
            status = self.call(*words, stdout=log, stderr=log, **environ)
            return Done(status, log.read_text())

    def call(self, *words: object, stdout: Path, stderr: Path, **environ: str) -> int:
        order = {
            "words": [*map(str, words)],
            "environ": {**os.environ, **environ},
            "folder": os.getcwd(),
            "stdout": str(stdout),
            "stderr": str(stderr),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        status: int = json.loads(self._process.stdout.readline())["status"]
        return status

    def close(self) -> None:
        with self._process:
            self._process.kill()


@functools.cache
def shared_cli() -> ForkedCli:
    """The one of this process: its imports take longer than most calls."""
    cli = ForkedCli()
    atexit.register(cli.close)
    return cli


@contextmanager
def started(*words: object, hold_at: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process of `rnow` that goes on beside the test, with pipes, and ends with the block.

    At `hold_at`, a name of kill_points.py, it stands still: what a test does to a live run then
    meets it there, however busy the machine is.
    """
    environ = {**os.environ, **({"RNOW_HOLD_AT": hold_at} if hold_at else {})}
    with subprocess.Popen(
        [sys.executable, "-m", "rnow", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model" / "adapter_model.safetensors")


def assert_bit_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


def metrics(run: Path, *, caches: bool = True) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what a clock changes, or without caches' counts too."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    volatile = ["time/", "tool/seconds", "teacher/wait_s", "tokens_per_s", "rollout/reused"]
    volatile += ["rollout/overlapped_s"]
    if not caches:
        volatile += ["browser/fetched", "browser/shared", "browser/local_requests"]
    return [
        {name: value for name, value in line.items() if not name.startswith(tuple(volatile))}
        for line in lines
    ]


def trajectories(run: Path, step: int) -> tuple[ScoredTrajectory, ...]:
    return read_journal(run / "trajectories" / f"{step:06d}.jsonl")


def assert_same_trajectories(one: Path, other: Path, *, num_steps: int) -> None:
    for step in range(num_steps):
        lefts, rights = trajectories(one, step), trajectories(other, step)
        assert lefts
        for left, right in zip(lefts, rights, strict=True):
            assert left.trajectory.id == right.trajectory.id
            assert left.trajectory.token_ids.tobytes() == right.trajectory.token_ids.tobytes()
            assert left.trajectory.sampler_logprobs.tobytes() == (
                right.trajectory.sampler_logprobs.tobytes()
            )
            assert left.teacher_logprobs.tobytes() == right.teacher_logprobs.tobytes()


def assert_same_run(one: Path, other: Path, *, num_steps: int) -> None:
    """What a run that was killed and resumed owes one that was not: the same bits."""
    assert_bit_equal(weights(one), weights(other))
    # A new process fetches pages again that the old one had.
    assert metrics(one, caches=False) == metrics(other, caches=False)
    evaluations = [(run / "evals.jsonl").read_text() for run in (one, other)]
    assert evaluations[0] == evaluations[1]
    assert_same_trajectories(one, other, num_steps=num_steps)
