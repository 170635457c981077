import asyncio
import json
import os
import time
from pathlib import Path

from rnow.commands.status import describe_runs
from rnow.runs.folder import RunDirectory
from rnow.runtime.deadline import within
from rnow.runtime.heartbeat import beating

SNAPSHOT = {
    "step": 3,
    "num_steps": 20,
    "stage": "rollout",
    "stage_s": 12.1,
    "done": 5,
    "total": 64,
    "progress_s": 3.0,
}


def stand_still_for(seconds: float) -> None:
    time.sleep(seconds)


async def test_a_loop_that_stands_still_leaves_the_stacks_of_all_threads_in_the_log(
    tmp_path: Path,
) -> None:
    log = tmp_path / "controller.log"
    async with beating(
        tmp_path / "status.json", log_file=log, describe=lambda: SNAPSHOT, standstill_s=0.2
    ):
        await asyncio.sleep(0)
        assert log.read_text() == ""
        stand_still_for(0.6)
        dumped = log.read_text()
    assert dumped.startswith("Timeout (0:00:00.200000)!\nThread ")
    assert " in stand_still_for\n" in dumped


async def test_a_loop_that_turns_is_not_reported(tmp_path: Path) -> None:
    log = tmp_path / "controller.log"
    async with beating(
        tmp_path / "status.json", log_file=log, describe=lambda: SNAPSHOT, standstill_s=0.2
    ):
        await asyncio.sleep(0)
    # Outside of a run nobody waits for the loop.
    stand_still_for(0.5)
    assert log.read_text() == ""


async def test_another_process_reads_what_a_run_is_at_and_whether_it_is_still_heard(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path / "runs" / "clinic")
    run.open()
    run.write_state(step=3, num_steps=20, finished=False)
    who = f"{run.path}: running, pid {os.getpid()} on {os.uname().nodename}"
    assert describe_runs(tmp_path) == [f"{who}, starting"]
    async with (
        beating(run.status_file, log_file=run.controller_log, describe=lambda: SNAPSHOT),
        within(600, "engine.sample of session 3/5/0"),
    ):
        await asyncio.sleep(0)
        shown = describe_runs(tmp_path)
        status = json.loads(run.status_file.read_text())
        run.status_file.write_text(json.dumps(status | {"time": time.time() - 90.2}))
        silent = describe_runs(tmp_path)
    what = "step 4/20, rollout for 12 s, 5 of 64; last progress 3 s ago"
    wait = "  waits for engine.sample of session 3/5/0: 0 s of at most 600 s"
    assert shown == [f"{who}: {what}", wait]
    silence = f"  has said nothing for 90 s; where it stands: {run.controller_log}"
    assert silent == [f"{who}: {what}", silence, wait]
    assert not run.status_file.exists()
    run.close()
