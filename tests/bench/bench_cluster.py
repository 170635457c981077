"""The demo on a Ray cluster of four nodes and two ranks, of which parts are killed while it trains.

    python tests/bench/bench_cluster.py --python .venv-vllm/bin/python [--kills 19] [--skip 0]

The nodes are raylets of this machine; student and teacher are vLLM servers on two of them, and the
ranks are on the others, the controller's own last. While the run goes on, this ends by SIGKILL what
KILLS names, each in the stage of a step that stands beside it: servers, keepers, ranks, machines,
and the controller's machine. Where the run ends by that, it has to say why, and the same
command has to go on, on a new cluster. Exits 1 unless the run finishes, its accuracy is at
least MIN_ACCURACY, no rollout was dropped, and no process and no folder is left.

Only what descends from this process is looked at and killed: orphans become its children.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ray.cluster_utils import Cluster as RayCluster

from rnow.commands.init import init_project

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
MIN_ACCURACY = 0.93
NUM_STEPS = 20  # of the demo
NUM_HELD_OUT = 24  # prompts, at the evaluations in which parts are killed
STEP_LIMIT_S, GONE_LIMIT_S = 900, 10
PR_SET_CHILD_SUBREAPER = 36
RAYLET = "/raylet/raylet "


class Process(NamedTuple):
    parent: int
    command: str


def ours() -> dict[int, Process]:
    """Return what descends from this process and runs."""
    columns = "pid=,ppid=,stat=,command="
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", columns], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 3) for line in listing.stdout.splitlines()]
    running = {
        int(pid): Process(int(parent), " ".join(command))
        for pid, parent, state, *command in rows
        if not state.startswith("Z") and not " ".join(command).startswith("ps -A")
    }
    found = {os.getpid()}
    while more := {pid for pid, one in running.items() if one.parent in found} - found:
        found |= more
    return {pid: running[pid] for pid in found - {os.getpid()}}


def server_of(role: str) -> int:
    """Return the process of a role's server; 0: there is none."""
    name = f"--served-model-name rnow-{role}-"
    running = ours()
    found = [
        pid
        for pid, (_, command) in running.items()
        if name in command and "/bin/sh" not in command.split()[0]
    ]
    return max((pid for pid in found if running[pid].parent not in found), default=0)


def above(pid: int, word: str) -> int:
    """Return the nearest process above that one whose command has the word; 0: there is none."""
    running = ours()
    while pid in running and word not in running[pid].command:
        pid = running[pid].parent
    return pid if pid in running else 0


def keeper_of(role: str) -> int:
    return above(server_of(role), "ray::Keeper")


def machine_of(role: str) -> int:
    return above(server_of(role), RAYLET)


def ranks() -> list[int]:
    return [pid for pid, one in ours().items() if "ranks.program" in one.command]


def last_rank() -> int:
    return max(ranks(), default=0)


def machine_of_ranks() -> int:
    """Return the raylet of ranks alone, without a server and without the controller."""
    others = {machine_of("student"), machine_of("teacher"), controllers_machine(), 0}
    return max({above(pid, RAYLET) for pid in ranks()} - others, default=0)


def controllers_machine() -> int:
    """Return the raylet of the cluster's head."""
    return next((pid for pid, one in ours().items() if "--head" in one.command.split()), 0)


class Kill(NamedTuple):
    stage: str  # as status.json has it
    what: str
    find: Callable[[], int]


KILLS = (
    Kill("rollout", "the student's server", lambda: server_of("student")),
    Kill("update", "the ranks' machine", machine_of_ranks),
    Kill("update", "a rank", last_rank),
    Kill("rollout", "the teacher's server", lambda: server_of("teacher")),
    Kill("update", "the student's server", lambda: server_of("student")),
    Kill("eval", "the student's keeper", lambda: keeper_of("student")),
    Kill("rollout", "the student's keeper", lambda: keeper_of("student")),
    Kill("update", "the teacher's keeper", lambda: keeper_of("teacher")),
    Kill("publish", "a rank", last_rank),
    Kill("publish", "the student's server", lambda: server_of("student")),
    Kill("rollout", "the teacher's machine", lambda: machine_of("teacher")),
    Kill("rollout", "a rank", last_rank),
    Kill("update", "the student's machine", lambda: machine_of("student")),
    Kill("rollout", "the controller's machine", controllers_machine),
    Kill("publish", "the student's machine", lambda: machine_of("student")),
    Kill("eval", "a rank", last_rank),
    Kill("publish", "the student's keeper", lambda: keeper_of("student")),
    Kill("eval", "the student's server", lambda: server_of("student")),
    Kill("eval", "the student's machine", lambda: machine_of("student")),
)


class Training:
    """The run, started again on a new cluster by the same command where it has ended."""

    def __init__(self, project: Path, python: str) -> None:
        self.folder = project / "runs" / "cluster"
        words = ["run", str(project), "--name", "cluster", "engine.kind=vllm"]
        words += [f"engine.python={python}", "trainer.num_ranks=2", "trainer.eval_step=2"]
        self._words = words
        self.ends: list[str] = []  # the last words, where it ended early
        self.shared: set[Path] = set()  # folders that keepers had
        self._open()

    def _open(self) -> None:
        self._cluster = RayCluster(initialize_head=True, head_node_args=NODE)
        for _ in range(3):
            self._cluster.add_node(**NODE)
        words = [*self._words, f"resources.cluster={self._cluster.address}"]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - as long as this is
        command = [sys.executable, "-m", "rnow", *words]
        self._run = subprocess.Popen(command, stdout=self._output, stderr=subprocess.STDOUT)

    @property
    def num_steps(self) -> int:
        file = self.folder / "metrics.jsonl"
        return file.read_text().count("\n") if file.exists() else 0

    def is_at(self, stage: str, step: int) -> bool:
        """Say whether the run is in that stage, of that step or a later one."""
        with suppress(OSError, ValueError):
            status = json.loads((self.folder / "status.json").read_text())
            return bool(status["stage"] == stage and status["step"] >= step)
        return False

    def kill(self, kill: Kill, step: int) -> None:
        end = time.monotonic() + STEP_LIMIT_S
        while not (self.is_at(kill.stage, step) and (pid := kill.find())):
            self.go_on()
            assert time.monotonic() < end, f"{kill.what}: step {step} has no {kill.stage} in time"
            time.sleep(0.2)
        self._see_folders()
        os.kill(pid, signal.SIGKILL)
        with suppress(
            ChildProcessError
        ):  # a raylet is a child of ours: Ray asks whether it is there
            os.waitpid(pid, 0)
        print(f"{self.num_steps} steps, {kill.stage}: {kill.what} was killed", flush=True)

    def go_on(self) -> None:
        """Have the run go on if it has ended before its last step; it must have said why."""
        code = self._run.poll()
        if code is None:
            return
        said = self.said()
        assert code != 0, f"the run ended before all was killed:\n{said}"
        assert "Traceback" not in said, said
        # Ray, where it ends the process itself, writes its state behind what it says.
        words = [line for line in said.splitlines() if "[state-dump]" not in line and line.strip()]
        self.ends.append(f"exit code {code}: {words[-1]}")
        print(self.ends[-1], flush=True)
        self.close()
        self._open()

    def wait(self) -> None:
        while self._run.poll() != 0:
            self.go_on()
            time.sleep(0.2)

    def said(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace").strip()

    def _see_folders(self) -> None:
        for pid, one in ours().items():
            if "ray::Keeper" in one.command or "--served-model-name" in one.command:
                with suppress(OSError):
                    opened = [file.readlink() for file in Path(f"/proc/{pid}/fd").iterdir()]
                    self.shared |= {file.parent for file in opened if "/rnow-" in str(file)}

    def close(self) -> None:
        self._run.kill()
        self._run.wait()
        end = time.monotonic() + GONE_LIMIT_S
        while (server_of("student") or server_of("teacher")) and time.monotonic() < end:
            time.sleep(0.1)
        self.left = [role for role in ("student", "teacher") if server_of(role)]
        self._cluster.shutdown()


def orphans() -> list[str]:
    """Return what still runs of all that descended from this process, after a while."""
    end = time.monotonic() + GONE_LIMIT_S
    while (left := ours()) and time.monotonic() < end:
        time.sleep(0.2)
    return [f"{pid} {one.command[:200]}" for pid, one in left.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", required=True, help="interpreter with vLLM")
    parser.add_argument("--kills", type=int, default=len(KILLS), help="how many of the list")
    parser.add_argument("--skip", type=int, default=0, help="how many of the list to leave out")
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary) / "clinic"
        init_project(project, template="clinic")
        held_out = project / "val.jsonl"
        prompts = held_out.read_text()
        held_out.write_text("".join(prompts.splitlines(keepends=True)[:NUM_HELD_OUT]))
        training = Training(project, str(Path(options.python).absolute()))
        try:
            for number, kill in enumerate(KILLS[options.skip : options.kills]):
                training.kill(kill, max(number, training.num_steps + 1) if number else 0)
            training.wait()
        except BaseException:
            print(training.said()[-3000:], flush=True)
            raise
        finally:
            training.close()
        held_out.write_text(prompts)
        figures = look(training, project)
    print(json.dumps(figures), flush=True)
    holds = figures["accuracy"] >= MIN_ACCURACY and figures["steps"] == NUM_STEPS
    wrong = ("dropped", "drift", "left", "orphans", "folders")
    sys.exit(0 if holds and not any(figures[name] for name in wrong) else 1)


def look(training: Training, project: Path) -> dict[str, Any]:
    """Return what the run has come to, and what it has left."""
    left = orphans()
    lines = (training.folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    words = ["eval", str(project), "--model", "cluster", "engine.kind=local", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "rnow", *words], stdout=subprocess.PIPE, check=True, text=True
    )
    return {
        "accuracy": json.loads(done.stdout.splitlines()[-1])["accuracy"],
        "steps": len(steps),
        "dropped": sum(step["rollout/dropped"] + step["teacher/dropped"] for step in steps),
        "drift": sum(step["tokens/drift"] for step in steps),
        "mismatch_kl": max(step["mismatch_kl"] for step in steps),
        "ends": training.ends,
        "left": training.left,
        "orphans": left,
        "folders": [str(folder) for folder in training.shared if folder.exists()],
    }


if __name__ == "__main__":
    main()
