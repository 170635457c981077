import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rnow.engines.vllm.address import new_socket, prepare_folder
from rnow.errors import EngineError

CONNECT = "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
AS_NOBODY = "os.setgroups([]); os.setgid(65534); os.setuid(65534); "


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder with a short path that others may enter."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_socket_lies_in_a_folder_of_its_own_below_tmpdir(place: Path) -> None:
    first, second = new_socket(), new_socket()
    assert first != second
    assert first.parent.parent == second.parent.parent == place
    prepare_folder(first)
    assert first.parent.stat().st_mode & 0o777 == 0o700


def test_no_other_user_can_connect(place: Path) -> None:
    path = new_socket()
    prepare_folder(path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o777)  # it is the folder that guards
        listening.listen()
        assert run(CONNECT, path) == b""
        if os.getuid() == 0:  # only then can one become somebody else
            assert b"PermissionError" in run(AS_NOBODY + CONNECT, path)


def run(code: str, path: Path) -> bytes:
    command = [sys.executable, "-I", "-c", f"import os, socket, sys; {code}", str(path)]
    return subprocess.run(command, capture_output=True).stderr


def test_a_temporary_folder_with_a_long_path_gives_way_to_a_short_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 20)))
    path = new_socket()
    assert path.parent.parent == Path("/tmp")
    assert len(str(path)) + 36 < 104


def test_a_socket_that_a_server_left_is_taken_away_and_its_folder_made_anew(place: Path) -> None:
    path = new_socket()
    prepare_folder(path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
    prepare_folder(path)
    assert not path.exists()
    path.parent.rmdir()
    prepare_folder(path)
    assert path.parent.is_dir()


def test_a_folder_that_others_can_enter_is_not_listened_in(place: Path) -> None:
    path = new_socket()
    path.parent.mkdir(mode=0o755)
    with pytest.raises(EngineError) as caught:
        prepare_folder(path)
    assert str(caught.value) == (
        f"{path.parent} is open to others: a vLLM server cannot listen there"
    )
