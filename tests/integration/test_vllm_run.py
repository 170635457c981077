"""Whole runs on vLLM: both roles, servers killed under them, runs ended in every way.

Each run starts servers of its own, a minute on two cores; so one run shows several things.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import wait_until
from short_runs import trajectories
from vllm_real import alive_in_group, vllm_python

from rnow.commands.init import init_project
from rnow.learner.checkpoint import load_checkpoint
from rnow.records import Trajectory

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SHORT = ("data.batch_size=4", "data.group_size=2", "trainer.max_steps=3")
START_LIMIT_S = 400  # servers on a busy machine


class Run:
    """`rnow run` as a process, and every process group that it started."""

    def __init__(self, project: Path, name: str, *overrides: str) -> None:
        self.folder = project / "runs" / name
        self.log = project / f"{name}.out"
        words = ["run", str(project), "--name", name, *SHORT, *overrides]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rnow", *words, f"engine.python={vllm_python()}"],
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.groups: set[int] = {self.process.pid}

    def until(self, holds: Callable[[], bool], *, limit_s: float = START_LIMIT_S) -> None:
        end = time.monotonic() + limit_s
        while not holds():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            self.groups |= {group for group, _ in self.descendants()}
            time.sleep(0.05)

    def descendants(self) -> list[tuple[int, str]]:
        """The group and command of every process below this run's."""
        listing = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,ppid=,pgid=,command="],
            capture_output=True,
            text=True,
            check=True,
        )
        rows = [line.split(None, 3) for line in listing.stdout.splitlines()]
        below, found = {self.process.pid}, []
        for _ in range(5):  # no deeper than this
            for pid, parent, group, *command in rows:
                if int(parent) in below and int(pid) not in below:
                    below.add(int(pid))
                    found.append((int(group), " ".join(command)))
        return found

    def server(self, role: str) -> int:
        """The process of a role's server, which leads its group."""
        name = f"--served-model-name rnow-{role}-"
        return next(group for group, command in self.descendants() if name in command)

    def is_collecting(self, step: int) -> bool:
        return self.journal_bytes(step) is not None

    def has_scored(self, step: int) -> bool:
        return bool(self.journal_bytes(step))

    def journal_bytes(self, step: int) -> int | None:
        """The size of a step's journal, in whichever form; None where it is not begun."""
        files = list((self.folder / "trajectories").glob(f"{step:06d}.jsonl*"))
        return max(file.stat().st_size for file in files) if files else None

    def metrics(self) -> list[dict[str, float]]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def wait(self, limit_s: float = START_LIMIT_S) -> int:
        return self.process.wait(limit_s)

    def assert_all_gone(self) -> None:
        assert len(self.groups) >= 2
        wait_until(lambda: not any(alive_in_group(group) for group in self.groups))


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "clinic"
    init_project(folder, template="clinic")
    yield folder
    for log in sorted(folder.glob("*.out")):
        print(log.read_text())


def test_a_run_on_vllm_whose_steps_overlap_survives_the_death_of_both_servers(
    project: Path,
) -> None:
    run = Run(project, "killed", "engine.kind=vllm", "trainer.max_policy_lag=1")
    run.until(lambda: run.is_collecting(0))
    os.kill(run.server("student"), signal.SIGKILL)
    run.until(lambda: run.has_scored(1))  # and the others are still to be scored
    os.kill(run.server("teacher"), signal.SIGKILL)
    run.until(lambda: run.is_collecting(2))
    assert run.wait() == 0, run.log.read_text()
    run.assert_all_gone()
    said = run.log.read_text()
    for role in ("student", "teacher"):
        assert f"the vLLM server of the {role} has ended (killed by SIGKILL); " in said
        assert f"the vLLM server of the {role} serves again" in said
    lines = run.metrics()
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert line["rollout/trajectories"] == 8
        assert line["rollout/dropped"] == line["teacher/dropped"] == 0
        assert line["tokens/drift"] == 0
        assert line["mismatch_kl"] < 0.01
        assert line["publish/probe"] < 1e-3
        assert line["publish/decode"] < 1e-3
    assert (run.folder / "model" / "adapter_model.safetensors").exists()


def test_no_process_is_left_however_a_run_ends_and_it_goes_on(project: Path) -> None:
    run = Run(project, "ended", "engine.kind=vllm")
    # While the servers start.
    run.until(lambda: len([c for _, c in run.descendants() if "api_server" in c]) >= 2)
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130
    run.assert_all_gone()

    run = Run(project, "ended", "engine.kind=vllm")
    run.until(lambda: run.has_scored(0))
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 143
    run.assert_all_gone()
    assert "To go on: rnow run" in run.log.read_text()

    run = Run(project, "ended", "engine.kind=vllm")
    run.until(lambda: run.has_scored(1))
    run.process.kill()
    run.wait()
    run.assert_all_gone()

    after_one = load_checkpoint(run.folder / "checkpoints" / "latest")
    assert after_one.step == 1
    finished_before = trajectories(run.folder, 1)  # a torn last line is not one of them
    assert finished_before

    run = Run(project, "ended", "engine.kind=vllm")
    assert run.wait() == 0, run.log.read_text()
    lines = run.metrics()
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert [line["rollout/trajectories"] for line in lines] == [8, 8, 8]
    assert lines[1]["rollout/reused"] == len(finished_before)
    assert_resumed_as_if_whole(run, project)


def assert_resumed_as_if_whole(run: Run, project: Path) -> None:
    """Data order, versions, optimizer state and step count are those of a run nobody killed."""
    whole = Run(project, "whole", "engine.kind=local")
    assert whole.wait() == 0, whole.log.read_text()
    for step in range(3):
        ours, theirs = (trajectories(each.folder, step) for each in (run, whole))
        for left, right in zip(ours, theirs, strict=True):
            one, other = left.trajectory, right.trajectory
            assert one.id == other.id
            assert prompt_of(one) == prompt_of(other)
            assert set(one.policy_version[one.action_mask]) == {step}
    ends = [load_checkpoint(each.folder / "checkpoints" / "latest") for each in (run, whole)]
    assert [end.step for end in ends] == [3, 3]
    assert ends[0].optimizer.keys() == ends[1].optimizer.keys()
    counts = {name: value for name, value in ends[0].optimizer.items() if name.startswith("step/")}
    assert counts
    assert {float(count) for count in counts.values()} == {3.0}


def prompt_of(trajectory: Trajectory) -> list[int]:
    return [int(id) for id in trajectory.token_ids[: trajectory.turns[0].start]]


def test_all_weights_follow_the_training_beside_a_teacher_in_this_process(project: Path) -> None:
    """The clinic's student ties its LM head to its embedding, which must follow too."""
    run = Run(
        project,
        "full",
        "engine.kind=vllm",
        "teacher.engine=local",
        "model.tuning=full",
        "trainer.learning_rate=1e-3",
    )
    assert run.wait() == 0, run.log.read_text()
    lines = run.metrics()
    assert len(lines) == 3
    for line in lines:
        assert line["publish/probe"] < 1e-3
        assert line["publish/decode"] < 1e-3
        assert line["mismatch_kl"] < 0.01
        assert line["tokens/drift"] == 0


def test_a_teacher_on_vllm_scores_for_a_student_in_this_process(project: Path) -> None:
    run = Run(project, "mixed", "engine.kind=local", "teacher.engine=vllm")
    run.until(lambda: run.is_collecting(0))
    assert run.wait() == 0, run.log.read_text()
    run.assert_all_gone()
    lines = run.metrics()
    assert [line["teacher/dropped"] for line in lines] == [0, 0, 0]
    assert all(line["mismatch_kl"] < 1e-6 for line in lines)
    local = Run(project, "local", "engine.kind=local")
    assert local.wait() == 0, local.log.read_text()
    # The same rollouts of step 0, by two teachers on the same weights.
    gaps = [runs.metrics()[0]["reverse_kl"] for runs in (run, local)]
    assert abs(gaps[0] - gaps[1]) < 1e-4
