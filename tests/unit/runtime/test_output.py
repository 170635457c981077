"""What becomes of standard output and error, in processes of their own."""

import os
import pty
import subprocess
import sys

import pytest
from processes import PATIENCE_S

PROGRAM = """
import os, sys
from rnow.runtime.output import settle_streams
settle_streams()
"""


def run(program: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM + program],
        capture_output=True,
        env=os.environ | environ,
        timeout=PATIENCE_S,
        check=False,
    )


SIGNS = "✓ ✗ – … · 2×3 → ─ Zürich 株 "


@pytest.mark.parametrize(
    ("environ", "encoding", "text"),
    [
        ({"PYTHONIOENCODING": "utf-8"}, "utf-8", SIGNS),
        ({"PYTHONIOENCODING": "ascii"}, "ascii", "v x - ... . 2x3 -> - Z?rich ? "),
        ({"PYTHONIOENCODING": "ascii:strict"}, "ascii", "v x - ... . 2x3 -> - Z?rich ? "),
        ({"PYTHONIOENCODING": "latin-1"}, "latin-1", "v x - ... · 2×3 -> - Zürich ? "),
        ({"PYTHONIOENCODING": "cp1252"}, "cp1252", "v x – … · 2×3 -> - Zürich ? "),
        (
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""},
            "ascii",
            "v x - ... . 2x3 -> - Z?rich ? ",
        ),
    ],
)
def test_every_encoding_shows_what_it_can(
    environ: dict[str, str], encoding: str, text: str
) -> None:
    done = run(f"print({SIGNS!a}); print({'✗'!a}, file=sys.stderr)", **environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding) == f"{text}\n"
    assert done.stderr.decode(encoding).strip() in ("✗", "x")


def test_a_reader_that_goes_is_not_missed() -> None:
    program = """
for number in range(50_000):
    print("line", number)
os.write(2, b"went on")
"""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM + program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr.read() == b"went on"
        assert process.wait(PATIENCE_S) == 0


def test_a_terminal_that_is_closed_is_not_missed() -> None:
    ours, theirs = pty.openpty()
    program = """
assert sys.stdout.isatty()
print("first")
sys.stdin.read(1)
print("second", flush=True)
os.write(2, b"went on")
"""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM + program],
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(theirs)
        assert os.read(ours, 100) == b"first\r\n"
        os.close(ours)
        assert process.communicate(b"x", timeout=PATIENCE_S)[1] == b"went on"
        assert process.returncode == 0


def test_a_full_disk_is_no_reader_that_went() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM + "print('x', flush=True)"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=PATIENCE_S,
            check=False,
        )
    # 120, and told again, where Python itself finds at its end what could not be written.
    assert done.returncode == 1
    assert done.stderr.count(b"No space left on device") == 1


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_stream_that_was_closed_takes_no_files_place(closed: tuple[int, ...]) -> None:
    program = f"""
import os, sys
for number in {closed}:
    os.close(number)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""
    inner = PROGRAM + (
        "file = os.open('/dev/zero', os.O_RDONLY)\nassert file > 2\n"
        "print('out'); print('err', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, inner], capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        b"" if 1 in closed else b"out\n",
        b"" if 2 in closed else b"err\n",
    )
