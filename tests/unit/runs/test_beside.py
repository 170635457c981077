"""What lies beside a step's journal goes with it, and a run goes on where it is torn."""

from pathlib import Path

from scored import make_scored

from rnow.records import RolloutId
from rnow.runs.archive import forget_oldest, journals
from rnow.runs.beside import read_beside, write_beside
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import (
    Journal,
    read_graded,
    read_journal,
    trajectory_from_json,
    trajectory_to_json,
)

LINES = [{"prompt": 1, "text": "a\u2028b\x85c"}, {"prompt": 2, "text": ""}]


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "trajectories" / "eval-000003.jsonl.zst"
    write_beside(path, LINES)
    assert read_beside(path) == LINES
    assert journals(path.parent) == []


def test_of_a_file_that_is_torn_or_not_there_nothing_is_read(tmp_path: Path) -> None:
    path = tmp_path / "eval-000003.jsonl.zst"
    assert read_beside(path) == []
    write_beside(path, LINES)
    path.write_bytes(path.read_bytes()[:-4])
    assert read_beside(path) == []


def test_a_step_that_is_taken_up_again_makes_it_anew(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in range(3):
        write_beside(run.beside("update", step), LINES)
        write_beside(run.beside("eval", step), LINES)
    run.rewind(1)
    left = sorted(path.name for path in (tmp_path / "trajectories").iterdir())
    assert left == ["eval-000000.jsonl.zst", "update-000000.jsonl.zst"]


def test_what_lies_beside_an_old_journal_makes_room_with_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    folder = tmp_path / "trajectories"
    for step in range(2):
        write_beside(run.beside("eval", step), LINES)
        (folder / f"{step:06d}.jsonl.zst").write_bytes(b"x" * 1000)
    removed = forget_oldest(folder, max_bytes=1500)
    assert [path.name for path in removed] == ["000000.jsonl.zst"]
    removed = forget_oldest(folder, max_bytes=100)
    assert [path.name for path in removed] == ["eval-000000.jsonl.zst", "000001.jsonl.zst"]


def test_a_journal_keeps_whether_answers_were_right(tmp_path: Path) -> None:
    path = tmp_path / "000000.jsonl"
    journal = Journal(path)
    for prompt, right in enumerate((True, False, None)):
        journal.append(make_scored(RolloutId(0, prompt, 0)), right=right)
    journal.close()
    assert [right for _, right in read_graded(path)] == [True, False, None]
    assert len(read_journal(path)) == 3


def test_a_trajectory_that_no_teacher_scored_reads_back() -> None:
    trajectory = make_scored(RolloutId(-1, 7, 0)).trajectory
    line = trajectory_to_json(trajectory)
    assert "teacher_logprobs" not in line
    assert trajectory_to_json(trajectory_from_json(line)) == line


def test_the_first_plan_of_a_run_stays(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.read_plan() == {}
    run.write_plan({"steps": 3})
    run.latest.mkdir(parents=True)
    run.write_plan({"steps": 4})
    assert run.read_plan() == {"steps": 3}
