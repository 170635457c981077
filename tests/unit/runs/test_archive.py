from pathlib import Path

import numpy as np
from scored import assert_same, make_scored

from rnow.records import RolloutId
from rnow.runs.archive import compress, expand, forget_oldest, journals
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import Journal, read_journal


def write_journal(path: Path, step: int) -> None:
    journal = Journal(path)
    for prompt in range(20):
        journal.append(make_scored(RolloutId(step, prompt, 0), policy_version=step))
    journal.close()


def test_a_compressed_journal_reads_as_it_did_and_takes_less_room(tmp_path: Path) -> None:
    path = tmp_path / "000003.jsonl"
    write_journal(path, 3)
    before, size = read_journal(path), path.stat().st_size
    compress(path)
    assert [found.name for found in tmp_path.iterdir()] == ["000003.jsonl.zst"]
    assert (tmp_path / "000003.jsonl.zst").stat().st_size < size / 4
    assert len(before) == 20
    for one, other in zip(read_journal(path), before, strict=True):
        assert_same(one, other)
    assert journals(tmp_path) == [path]
    expand(path)
    assert path.stat().st_size == size
    assert [found.name for found in tmp_path.iterdir()] == ["000003.jsonl"]


def test_a_journal_in_both_forms_is_the_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "000003.jsonl"
    write_journal(path, 3)
    content = path.read_bytes()
    compress(path)
    path.write_bytes(content)  # what a kill before the removal leaves
    assert len(read_journal(path)) == 20
    assert journals(tmp_path) == [path]
    compress(path)
    assert [found.name for found in tmp_path.iterdir()] == ["000003.jsonl.zst"]


def test_the_oldest_go_when_there_are_too_many(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for step in range(4):
        (tmp_path / f"{step:06d}.jsonl.zst").write_bytes(random.bytes(1000))
    (tmp_path / "000004.jsonl").write_bytes(random.bytes(1000))
    removed = forget_oldest(tmp_path, max_bytes=3000)
    assert [path.name for path in removed] == ["000000.jsonl.zst", "000001.jsonl.zst"]
    # What is not compressed is still in use, whatever its size.
    forget_oldest(tmp_path, max_bytes=0)
    assert [path.name for path in tmp_path.iterdir()] == ["000004.jsonl"]


def test_a_run_compresses_the_steps_that_are_saved_and_rewinds_over_both_forms(
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path)
    run.trajectories(0).parent.mkdir()
    for step in range(4):
        write_journal(run.trajectories(step), step)
    assert run.archive_trajectories(before=3, max_bytes=1e9) == []
    folder = run.trajectories(0).parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "000000.jsonl.zst",
        "000001.jsonl.zst",
        "000002.jsonl.zst",
        "000003.jsonl",
    ]
    run.rewind(1)
    # That of the step that is taken up again is one that can be appended to.
    assert sorted(path.name for path in folder.iterdir()) == ["000000.jsonl.zst", "000001.jsonl"]
    assert len(read_journal(run.trajectories(1), policy_version=1)) == 20
