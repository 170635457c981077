from pathlib import Path

import pytest

from rnow.commands.status import describe_runs
from rnow.errors import CheckpointError
from rnow.runs.folder import RunDirectory
from rnow.runs.own_records import append_line, read_lines


@pytest.mark.parametrize("damaged", [b'{"step": ', b"7", b"\xff\xfe", b""])
def test_a_damaged_line_is_named_and_a_torn_last_one_is_none(
    tmp_path: Path, damaged: bytes
) -> None:
    file = tmp_path / "metrics.jsonl"
    append_line(file, {"step": 0, "text": "a\u2028b"})
    with file.open("ab") as opened:
        opened.write(damaged)  # by a kill
    assert read_lines(file) == [{"step": 0, "text": "a\u2028b"}]
    with file.open("ab") as opened:
        opened.write(b"\n")
    append_line(file, {"step": 1})
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl:2 is a run's own record and cannot"):
        read_lines(file)


def test_a_run_with_damaged_records_hides_no_other(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        run = RunDirectory(tmp_path / "runs" / name)
        run.open()
        run.write_config({"data": {}})
        run.write_state(step=3, num_steps=3, finished=True)
        run.close()
    (tmp_path / "runs" / "a" / "state.json").write_text("{")
    (tmp_path / "runs" / "b" / "metrics.jsonl").write_text("{\n")
    a, b, b_more, c = describe_runs(tmp_path)
    runs = tmp_path / "runs"
    assert a.startswith(f"{runs}/a: {runs}/a/state.json is a run's own record and cannot be read: ")
    assert b.startswith(f"{runs}/b: finished after 3 steps")
    assert b_more.startswith(f"  {runs}/b/metrics.jsonl:1 is a run's own record and cannot be ")
    assert c.startswith(f"{runs}/c: finished after 3 steps")
