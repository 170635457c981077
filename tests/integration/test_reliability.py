"""Whole runs of the demo project that meet a fault, are looked at, or are stopped from outside."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from processes import PATIENCE_S, wait_until, wait_until_held
from short_runs import ForkedCli, assert_same_run, started

from rnow.commands.init import init_project

pytestmark = pytest.mark.slow

SHORT = ("data.batch_size=2", "data.group_size=2", "trainer.max_steps=3")
LONG = ("data.batch_size=2", "data.group_size=2", "trainer.max_steps=288")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projects") / "clinic"
    init_project(folder, template="clinic")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(rnow: ForkedCli, project: Path) -> Path:
    done = rnow("run", project, "--name", "uninterrupted", *SHORT, "trainer.save_step=1")
    assert done.status == 0, done.output
    (project / "runs" / "uninterrupted" / "evals.jsonl").touch()
    return project / "runs" / "uninterrupted"


def test_a_live_run_is_shown_with_what_it_waits_for_refuses_a_second_and_can_be_stopped(
    rnow: ForkedCli, project: Path
) -> None:
    run = project / "runs" / "live"
    words = ("run", project, "--name", "live", *LONG)
    with started(*words) as process:
        wait_until(lambda: "/288, rollout for" in rnow("status", project).output)
        process.send_signal(signal.SIGSTOP)  # it might end before all has been asked
        shown = rnow("status", project).output
        assert f"{run}: running, pid {process.pid} on " in shown
        assert "last progress" in shown
        second = rnow(*words)
        assert second.status == 1
        assert f"{run} is held by a run with pid {process.pid} on " in second.output
        process.send_signal(signal.SIGCONT)
        stopped = rnow("stop", run)
        assert stopped.status == 0, stopped.output
        assert f"asked process {process.pid} to stop" in stopped.output
        go_on = f"To go on: rnow run {project} --name live"
        assert go_on in stopped.output
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143
    assert "Stopped by SIGTERM" in errors
    assert go_on in errors
    after = rnow("status", project).output
    assert f"{run}: not running; " in after
    assert not (run / "status.json").exists()
    again = rnow("stop", run)
    assert again.status == 2
    assert f"nothing runs in {run}" in again.output


def test_a_run_whose_folder_is_deleted_says_so_and_ends(project: Path) -> None:
    run = project / "runs" / "gone"
    words = ("run", project, "--name", "gone", *LONG)
    with started(*words, hold_at="metrics.jsonl/appended") as process:
        wait_until_held(process.pid)
        run.rename(project / "trash")  # at once: rm would race with what the run writes
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert f"{run} was deleted or moved while its run went on" in errors
    assert "Traceback" not in errors


def test_a_time_limit_saves_and_ends_with_exit_code_0(rnow: ForkedCli, project: Path) -> None:
    run = project / "runs" / "limited"
    for limit_s in (8, 32, 128):  # a busy machine may not come to its first step before that
        words = ("--name", "limited", *LONG, f"trainer.max_time_s={limit_s}")
        limited = rnow("run", project, *words)
        assert limited.status == 0
        assert f"To go on: rnow run {project} --name limited" in limited.output
        if (run / "checkpoints" / "latest").exists():
            break
    state = json.loads((run / "state.json").read_text())
    assert not state["finished"]
    assert state["step"] >= 1


def test_a_second_signal_ends_at_once_and_nothing_is_spoilt(
    rnow: ForkedCli, project: Path, uninterrupted: Path
) -> None:
    run = project / "runs" / "twice"
    words = ("run", project, "--name", "twice", *SHORT, "trainer.save_step=1")
    with started(*words, hold_at="journal/appended") as process:
        wait_until_held(process.pid)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            process.send_signal(number)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    resumed = rnow(*words)
    assert resumed.status == 0, resumed.output
    (run / "evals.jsonl").touch()
    assert_same_run(uninterrupted, run, num_steps=3)


def test_a_call_that_is_refused_leaves_the_records_of_what_was_done(
    rnow: ForkedCli, project: Path, uninterrupted: Path
) -> None:
    run = project / "runs" / "refused"
    shutil.copytree(uninterrupted, run)
    state = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps({**state, "finished": False}))
    before = {path.name: path.read_bytes() for path in run.glob("[a-z]*.*")}
    done = rnow("run", project, "--name", "refused", *SHORT, "trainer.max_steps=2")
    assert done.status == 1
    assert f"{run} has done 3 steps, and config.yml now asks for 2" in done.output
    assert {path.name: path.read_bytes() for path in run.glob("[a-z]*.*")} == before


@pytest.mark.parametrize("lag", [0, 1])
def test_three_updates_with_bad_numbers_end_the_run_and_each_can_be_replayed(
    rnow: ForkedCli, project: Path, lag: int
) -> None:
    run = project / "runs" / f"bad-{lag}"
    settings = (*LONG, "algorithm.kl_penalty_coef=1e38", f"trainer.max_policy_lag={lag}")
    done = rnow("run", project, "--name", run.name, *settings)
    assert done.status == 4
    assert rnow("report", run).status == 0
    assert "that is 3 updates in a row that could not be made" in done.output
    kept = sorted((run / "bad").glob("*.jsonl"))
    assert [file.name[:6] for file in kept] == ["000000", "000001", "000002"]
    for file in kept:
        assert f"To make just this update again: rnow replay {file}" in done.output
    replayed = rnow("replay", kept[1])
    assert replayed.status == 4
    assert "the batch of step 1, on the weights after 1 updates" in replayed.output
    assert "not finite: step 1: " in replayed.output
    assert "not what it met" not in replayed.output
    # Without the weights of that time, the run's newest do: two updates later, none of which moved.
    for folder in (run / "bad").glob("*.weights"):
        folder.rename(folder.with_name("elsewhere-" + folder.name))
    with_newest = rnow("replay", kept[1])
    assert with_newest.status == 4
    assert "the batch of step 1, on the weights after 2 updates" in with_newest.output
    assert "not what it met" not in with_newest.output
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(
        lines.replace('"trainer/skipped": 1.0', '"trainer/skipped": 0.0')
    )
    moved_on = rnow("replay", kept[1])
    assert (
        "not what it met, which is not kept: 1 updates moved the weights in between"
        in moved_on.output
    )
    (run / "metrics.jsonl").write_text(lines)
    good = run / "trajectories" / "000000.jsonl.zst"
    assert good.exists()
    other = rnow("replay", run / "metrics.jsonl")
    assert other.status == 2
    assert "is not a batch that a run kept" in other.output


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system")
def test_a_run_whose_disk_is_full_goes_on_once_there_is_room(
    rnow: ForkedCli, project: Path, uninterrupted: Path
) -> None:
    run = project / "runs" / "full"
    run.mkdir(parents=True)
    # What a step saves is about 3 MB: the second does not fit.
    mount = ["mount", "-t", "tmpfs", "-o", "size=7m", "none", run]
    subprocess.run(mount, check=True)
    words = ("run", project, "--name", "full", *SHORT, "trainer.save_step=1")
    try:
        full = rnow(*words)
        assert full.status == 1, full.output
        assert "the disk is full: " in full.output
        assert " was being written, which needs " in full.output
        assert "Traceback" not in full.output
        assert not json.loads((run / "state.json").read_text())["finished"]
        subprocess.run(["mount", "-o", "remount,size=100m", run], check=True)
        resumed = rnow(*words)
        assert resumed.status == 0, resumed.output
        assert "going on with" in resumed.output
        (run / "evals.jsonl").touch()
        assert_same_run(uninterrupted, run, num_steps=3)
    finally:
        subprocess.run(["umount", "-l", run], check=True)


def test_full_fine_tuning_saves_by_the_clock_and_at_a_stop(rnow: ForkedCli, project: Path) -> None:
    full = ("model.tuning=full", "trainer.learning_rate=1e-4")
    words = ("run", project, *SHORT, *full)
    assert rnow(*words, "--name", "full-whole").status == 0
    # Ten minutes have not passed: nothing was saved before the kill, and all is made again.
    killed = rnow(*words, "--name", "full-killed", RNOW_KILL_AT="metrics.jsonl/appended:3")
    assert killed.status == -9
    run = project / "runs" / "full-killed"
    assert not (run / "checkpoints" / "latest").exists()
    assert rnow(*words, "--name", "full-killed").status == 0
    whole = project / "runs" / "full-whole"
    names = [path.name for path in (whole / "model").glob("*.safetensors")]
    assert names
    for name in names:
        assert (whole / "model" / name).read_bytes() == (run / "model" / name).read_bytes()


def test_a_run_that_still_imports_its_tools_hears_a_stop(tmp_path: Path) -> None:
    project, here = tmp_path / "clinic", tmp_path / "here"
    init_project(project, template="clinic")
    (project / "tools.py").write_text(
        f"import pathlib, time\npathlib.Path({str(here)!r}).touch()\ntime.sleep(600)\n"
    )
    with started("run", project) as process:
        wait_until(here.exists)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 143
    assert "Stopped by SIGTERM" in errors
    assert "Traceback" not in errors
