import io
import re
from pathlib import Path

from rich.console import Console

from rnow.runs.folder import RunDirectory
from rnow.training.monitor import Monitor

METRICS = {
    "reverse_kl": 0.5,
    "mismatch_kl": 1e-7,
    "tokens/action": 100.0,
    "tokens/drift": 0.0,
    "rollout/turns": 2.0,
    "rollout/action_tokens": 25.0,
    "time/rollout": 1.0,
    "time/teacher": 0.0,
    "tool/calls": 4.0,
    "tool/model_error": 0.0,
}


def make_run(folder: Path) -> RunDirectory:
    run = RunDirectory(folder)
    run.open()
    return run


def test_a_step_is_one_plain_line_where_there_is_no_terminal(tmp_path: Path) -> None:
    run, output = make_run(tmp_path), io.StringIO()
    monitor = Monitor(Console(file=output, width=60), run=run, num_steps=3)
    monitor.begin_step(0)
    with monitor.stage("update"):
        pass
    monitor.finish_step(METRICS)
    run.close()
    lines = output.getvalue().splitlines()
    assert len(lines) == 1
    assert re.fullmatch(
        r"step 1/3  reverse_kl 0\.5000  mismatch_kl 1\.0e-07  action tokens 100  turns 2\.00  "
        r"0\.0 s \(rollout 1\.0, teacher \+0\.0, update 0\.0\)  ETA 0 s",
        lines[0],
    )
    (written,) = run.read_metrics()
    assert written["step"] == 0
    assert written["reverse_kl"] == 0.5
    assert {"time/update", "time/step", "tokens_per_s"} <= written.keys()


def test_a_stage_that_others_time_writes_no_seconds(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    monitor = Monitor(Console(quiet=True), run=run, num_steps=1)
    monitor.begin_step(0)
    with monitor.stage("rollout", total=1, is_timed=False), monitor.stage("update"):
        pass
    monitor.finish_step(METRICS, {"publish/probe": 0.0})
    run.close()
    (written,) = run.read_metrics()
    assert (written["time/rollout"], written["publish/probe"]) == (1.0, 0.0)


def test_an_alarm_is_told_once_a_run(tmp_path: Path) -> None:
    run, output = make_run(tmp_path), io.StringIO()
    monitor = Monitor(Console(file=output, width=200), run=run, num_steps=3)
    for step in range(3):
        monitor.begin_step(step)
        with monitor.stage("update"):
            pass
        monitor.finish_step({**METRICS, "mismatch_kl": 0.02})
    run.close()
    assert output.getvalue().count("ALARM mismatch: mismatch_kl is 0.02") == 1


def test_a_skipped_step_is_said_and_written(tmp_path: Path) -> None:
    run, output = make_run(tmp_path), io.StringIO()
    monitor = Monitor(Console(file=output, width=200), run=run, num_steps=3)
    monitor.begin_step(0)
    monitor.finish_step({"tokens/action": 100.0, "trainer/skipped": 1.0})
    run.close()
    assert output.getvalue() == "step 1/3  SKIPPED: numbers were not finite\n"
    assert run.read_metrics()[0]["trainer/skipped"] == 1.0


def test_a_step_that_is_taken_up_again_counts_once_for_alarms(tmp_path: Path) -> None:
    run, output = make_run(tmp_path), io.StringIO()
    long = {"rollout/action_tokens": 100.0}
    for step in range(5):
        run.append_metrics({"step": step, **METRICS, **(long if step == 4 else {})})
    monitor = Monitor(Console(file=output, width=200), run=run, num_steps=9)
    monitor.begin_step(4)
    with monitor.stage("update"):
        pass
    monitor.finish_step({**METRICS, **long})
    run.close()
    # Six lines would be enough for the alarm on length; with step 4 counted once there are five.
    assert "ALARM" not in output.getvalue()


def test_rollouts_of_the_next_step_are_counted_beside_the_stage(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    monitor = Monitor(Console(quiet=True), run=run, num_steps=3)
    monitor.begin_step(1)
    advance = monitor.begin_ahead(2, total=4)
    with monitor.stage("update"):
        advance()
        advance()
        shown = monitor.snapshot()
    assert (shown["step"], shown["stage"], shown["total"]) == (1, "update", None)
    assert shown["ahead"] == [{"step": 2, "done": 2, "total": 4}]
    monitor.end_ahead()
    assert monitor.snapshot()["ahead"] == []
    run.close()
