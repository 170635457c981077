"""The runner of `make bench` and `make gpu`, on real children: deadlines, crashes, resuming."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import gpu_all
import parts
import run_all
from parts import BENCH, Part, Run
from rows import row, rows_in

HOLDS = (
    "from rows import row\nrow('speed', 2.0, 's', most=3, beside='theirs 4 s', note='differs')\n"
)
BREAKS = "import sys\nfrom rows import row\nsys.exit(not row('size', 9.0, 'MB', most=3))\n"
CRASHES = "from rows import row\nrow('first', 1.0, 's')\nraise SystemExit('no such thing')\n"
KILLED = "import os\nos.kill(os.getpid(), 9)\n"
MUTE = "print('nothing')\n"
HANGS = (
    "import pathlib, subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\ntime.sleep(600)\n"
)
COUNTS = (
    "import pathlib, sys\nfrom rows import row\nfile = pathlib.Path(sys.argv[1])\n"
    "number = int(file.read_text()) + 1 if file.exists() else 1\nfile.write_text(str(number))\n"
    "sys.exit(not row('runs', number, '', least=float(sys.argv[2])))\n"
)


def script(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(f"import sys\nsys.path.insert(0, {str(BENCH)!r})\n{text}")
    return name


def run(folder: Path, *made: Part, resume: bool = False, budget_s: float = float("inf")) -> bool:
    settings = Run(
        parts=made,
        file=folder / "found.json",
        folder=folder,
        resume=resume,
        budget_s=budget_s,
        say=lambda text: None,
    )
    return settings.all()


def found(folder: Path) -> dict[str, dict[str, object]]:
    read: dict[str, dict[str, object]] = json.loads((folder / "found.json").read_text())["parts"]
    return read


def test_a_part_that_fails_is_a_broken_row_and_the_next_is_run(tmp_path: Path) -> None:
    texts = {"breaks": BREAKS, "crashes": CRASHES, "killed": KILLED, "mute": MUTE, "holds": HOLDS}
    made = [
        Part(name=name, command=(script(tmp_path, f"{name}.py", text),))
        for name, text in texts.items()
    ]
    assert not run(tmp_path, *made)
    states = {name: (each["state"], each["why"]) for name, each in found(tmp_path).items()}
    assert states == {
        "breaks": ("broken", ""),
        "crashes": ("failed", "ended with exit code 1 though every row that it wrote holds"),
        "killed": ("failed", "was ended by SIGKILL"),
        "mute": ("failed", "ended with exit code 0 and wrote no row"),
        "holds": ("held", ""),
    }
    assert found(tmp_path)["holds"]["rows"] == [
        {
            "name": "speed",
            "value": 2.0,
            "unit": "s",
            "bound": "<= 3",
            "ok": True,
            "beside": "theirs 4 s",
            "note": "differs",
        }
    ]
    assert "no such thing" in (tmp_path / "found" / "crashes.log").read_text()


def test_a_part_ends_at_its_deadline(tmp_path: Path) -> None:
    name = script(tmp_path, "hangs.py", HANGS)
    hangs = Part(name="hangs", command=(name, str(tmp_path / "pid")), timeout_s=0.5)
    assert not run(tmp_path, hangs, Part(name="next", command=(script(tmp_path, "n.py", HOLDS),)))
    each = found(tmp_path)
    assert (each["hangs"]["state"], each["hangs"]["why"]) == ("failed", "took longer than 0.5 s")
    assert each["next"]["state"] == "held"


def test_a_runner_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    name = script(tmp_path, "hangs.py", HANGS)
    code = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r})\nfrom pathlib import Path\n"
        "from parts import Part, Run, end_on_sigterm\nend_on_sigterm()\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"part = Part(name='hangs', command=({name!r}, {str(pid)!r}))\n"
        "Run(parts=[part], file=folder / 'found.json', folder=folder).all()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as runner:
        while not (pid.exists() and pid.read_text()):
            assert runner.poll() is None
            time.sleep(0.05)
        runner.terminate()
    assert runner.returncode == 128 + signal.SIGTERM
    assert wait_for_end(int(pid.read_text()))


def wait_for_end(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_what_held_is_not_run_again(tmp_path: Path) -> None:
    name = script(tmp_path, "counts.py", COUNTS)
    made = [
        Part(name=part, command=(name, str(tmp_path / part), least))
        for part, least in (("once", "1"), ("twice", "2"))
    ]
    runs = lambda: [(tmp_path / part).read_text() for part in ("once", "twice")]  # noqa: E731
    assert not run(tmp_path, *made)
    assert run(tmp_path, *made, resume=True)
    assert run(tmp_path, *made, resume=True)
    assert runs() == ["1", "2"]
    # Another script is another measurement, as are other machines and versions.
    script(tmp_path, "counts.py", COUNTS + "# changed\n")
    assert run(tmp_path, *made, resume=True)
    assert runs() == ["2", "3"]
    before = json.loads((tmp_path / "found.json").read_text())
    before["versions"]["torch"] = "1.0"
    (tmp_path / "found.json").write_text(json.dumps(before))
    assert run(tmp_path, *made, resume=True)
    assert run(tmp_path, *made)
    assert runs() == ["4", "5"]


def test_a_part_alone_leaves_the_others_results(tmp_path: Path) -> None:
    made = {
        name: Part(name=name, command=(script(tmp_path, f"{name}.py", HOLDS),)) for name in "ab"
    }
    assert run(tmp_path, *made.values())
    for resume in (True, False):
        assert run(tmp_path, made["b"], resume=resume)
        assert list(found(tmp_path)) == ["a", "b"]


def test_what_a_part_lacks_is_said_and_breaks_nothing(tmp_path: Path) -> None:
    name = script(tmp_path, "holds.py", HOLDS)
    two = Part(name="two", command=(name,), lacking=lambda: "needs 2 GPUs, and 1 is here")
    assert run(tmp_path, two)
    assert found(tmp_path)["two"]["why"] == "needs 2 GPUs, and 1 is here"


def test_a_part_that_time_is_not_left_for_is_left_for_the_next_run(tmp_path: Path) -> None:
    part = Part(name="a", command=(script(tmp_path, "a.py", HOLDS),), timeout_s=300)
    assert not run(tmp_path, part, budget_s=200)
    assert found(tmp_path)["a"]["state"] == "left"
    assert run(tmp_path, part, budget_s=400, resume=True)


def test_the_table_has_a_line_a_row_and_says_what_differs() -> None:
    shown = {"name": "x", "value": 1.5, "unit": "s", "bound": "<= 2", "ok": True, "beside": "y"}
    done = {
        "one": {"state": "held", "why": "", "rows": [{**shown, "note": "other"}]},
        "two": {"state": "broken", "why": "", "rows": [{**shown, "ok": False, "note": ""}]},
        "three": {"state": "failed", "why": "was ended by SIGKILL", "rows": []},
    }
    assert [" ".join(line.split()) for line in parts.table(done)] == [
        "",
        "part measured value bound beside it",
        "one x 1.5 s <= 2 y ok [1]",
        "two x 1.5 s <= 2 y BROKEN",
        "three was ended by SIGKILL BROKEN",
        "[1] other",
    ]


def test_a_figure_that_is_no_number_holds_nothing() -> None:
    assert "RNOW_BENCH_ROWS" not in os.environ
    assert row("a", 1.0, "s", least=1, most=1)
    assert not row("a", float("nan"), "s")
    assert not row("a", 0.9, "s", least=1)


def test_a_line_that_was_cut_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text('{"name": "a"}\n{"na')
    assert rows_in(tmp_path / "rows") == [{"name": "a"}]


def test_every_part_is_a_script_and_parts_of_a_gpu_are_short() -> None:
    for made in (run_all.PARTS, gpu_all.PARTS):
        names = [part.name for part in made]
        assert len(set(names)) == len(names)
        assert [part.name for part in made if not (BENCH / part.command[0]).is_file()] == []
    assert all(part.timeout_s < 480 for part in gpu_all.PARTS)
    assert gpu_all.BUDGET_S == 25 * 60
