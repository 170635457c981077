"""The demo on a Ray cluster of four nodes, of which parts are killed while it trains.

    python tests/bench/bench_cluster.py --python .venv-vllm/bin/python

The nodes are raylets of this machine; student and teacher are vLLM servers on two of them. While
the run goes on, this ends by SIGKILL, each in a step of its own: the student's server, the
teacher's keeper, and the raylet of the student's machine. Exits 1 unless the run finishes, its
accuracy is at least MIN_ACCURACY, no rollout was dropped, and no process and no folder is left.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray.cluster_utils import Cluster as RayCluster

from rnow.commands.init import init_project

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
MIN_ACCURACY = 0.93
START_LIMIT_S, STEP_LIMIT_S, GONE_LIMIT_S = 600, 600, 10


def processes() -> dict[int, tuple[int, str]]:
    """Return parent and command of every process."""
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True
    )
    rows = [line.split(None, 2) for line in listing.stdout.splitlines()]
    return {int(pid): (int(parent), " ".join(command)) for pid, parent, *command in rows}


def server_of(role: str) -> int:
    """Return the process of a role's server, the newest."""
    name = f"--served-model-name rnow-{role}-"
    running = processes()
    found = [
        pid
        for pid, (_, command) in running.items()
        if name in command and "/bin/sh" not in command.split()[0]
    ]
    leaders = [pid for pid in found if running[pid][0] not in found]
    return max(leaders, default=0)


def ancestor(pid: int, word: str) -> int:
    """Return the nearest process above `pid` whose command has the word."""
    running = processes()
    while word not in running[pid][1]:
        pid = running[pid][0]
    return pid


def until_step(run: "subprocess.Popen[bytes]", folder: Path, step: int, *, limit_s: float) -> None:
    end, file = time.monotonic() + limit_s, folder / "metrics.jsonl"
    while not (file.exists() and file.read_text().count("\n") >= step):
        assert run.poll() is None, "the run ended"
        assert time.monotonic() < end, f"step {step} is not done within {limit_s} s"
        time.sleep(0.2)


def kill_parts(run: "subprocess.Popen[bytes]", folder: Path) -> None:
    until_step(run, folder, 2, limit_s=START_LIMIT_S)
    for step, what, find in (
        (4, "the student's server", lambda: server_of("student")),
        (8, "the teacher's keeper", lambda: ancestor(server_of("teacher"), "ray::Keeper")),
        (12, "the student's machine", lambda: ancestor(server_of("student"), "/raylet/raylet ")),
    ):
        until_step(run, folder, step, limit_s=STEP_LIMIT_S)
        pid = find()
        assert pid, f"{what} is not there"
        os.kill(pid, signal.SIGKILL)
        print(f"step {step}: {what} was killed", flush=True)


def train(project: Path, python: str, address: str) -> Path:
    folder = project / "runs" / "cluster"
    words = ["run", str(project), "--name", "cluster", "engine.kind=vllm"]
    words += [f"engine.python={python}", f"resources.cluster={address}"]
    with subprocess.Popen([sys.executable, "-m", "rnow", *words]) as run:
        try:
            kill_parts(run, folder)
            assert run.wait(STEP_LIMIT_S * 3) == 0, "the run failed"
        finally:
            run.kill()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="interpreter with vLLM")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary) / "clinic"
        init_project(project, template="clinic")
        cluster = RayCluster(initialize_head=True, head_node_args=NODE)
        for _ in range(3):
            cluster.add_node(**NODE)
        try:
            folder = train(project, str(Path(options.python).absolute()), cluster.address)
            end = time.monotonic() + GONE_LIMIT_S
            while (server_of("student") or server_of("teacher")) and time.monotonic() < end:
                time.sleep(0.1)
            left = [role for role in ("student", "teacher") if server_of(role)]
            folders = [str(path) for path in Path("/dev/shm").glob("rnow-*")]
        finally:
            cluster.shutdown()
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        words = ["eval", str(project), "--model", "cluster", "engine.kind=local", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "rnow", *words], stdout=subprocess.PIPE, check=True, text=True
        )
    figures = {
        "accuracy": json.loads(done.stdout.splitlines()[-1])["accuracy"],
        "steps": len(steps),
        "dropped": sum(step["rollout/dropped"] + step["teacher/dropped"] for step in steps),
        "drift": sum(step["tokens/drift"] for step in steps),
        "mismatch_kl": max(step["mismatch_kl"] for step in steps),
        "left": left,
        "folders": folders,
    }
    print(json.dumps(figures), flush=True)
    holds = figures["accuracy"] >= MIN_ACCURACY and not figures["dropped"] + figures["drift"]
    sys.exit(0 if holds and not left and not folders else 1)


if __name__ == "__main__":
    main()
