import os
import tempfile
from pathlib import Path

import pytest

from rnow.runtime.atomic_files import recover_folder, replace_file, replace_folder


def fill(text: str):
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text(text)

    return write


def test_a_replaced_file_holds_the_new_text_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, "old")
    replace_file(path, "new")
    assert path.read_text() == "new"
    assert [found.name for found in tmp_path.iterdir()] == ["state.json"]


def test_a_folder_whose_writer_fails_keeps_its_old_content(tmp_path: Path) -> None:
    folder = tmp_path / "latest"
    replace_folder(folder, fill("old"))

    def broken(temporary: Path) -> None:
        (temporary / "a.txt").write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        replace_folder(folder, broken)
    assert (folder / "a.txt").read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["latest"]
    replace_folder(folder, fill("new"))
    assert (folder / "a.txt").read_text() == "new"
    assert [found.name for found in tmp_path.iterdir()] == ["latest"]


def test_a_kill_between_the_two_renames_is_undone(tmp_path: Path) -> None:
    folder = tmp_path / "latest"
    replace_folder(folder, fill("old"))
    folder.replace(tmp_path / ".latest.old")  # what a kill at that instant leaves
    recover_folder(folder)
    assert (folder / "a.txt").read_text() == "old"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_who_may_read_a_folder_may_read_its_files(tmp_path: Path, umask: int, mode: int) -> None:
    def write(folder: Path) -> None:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as private:
            private.write(b"weights")

    before = os.umask(umask)
    try:
        replace_folder(tmp_path / "model", write)
        replace_file(tmp_path / "state.json", "{}")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.stat().st_mode & 0o777 for path in files] == [mode, mode]
