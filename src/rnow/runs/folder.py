"""The folder of one run: where everything lies, who holds it, how far it got.

    runs/<name>/config.yml  state.json  metrics.jsonl  trajectories/  checkpoints/  policies/
                model/  logs/  status.json while it runs

Two runs never share a folder: the holder keeps an operating-system lock, which dies with it, and
writes its pid and host into state.json for whoever is refused.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from rnow.config.surroundings import Surroundings
from rnow.errors import CheckpointError, Interrupted, RnowError
from rnow.runs.archive import archived, compress, expand, forget_oldest, journals
from rnow.runs.beside import Kind, beside, forget_beside
from rnow.runs.own_records import append_line, read_lines, read_record
from rnow.runtime.atomic_files import recover_folder, replace_file

NUM_TRIES = 3  # to take the lock
PACKAGES = ("rnow", "torch", "transformers", "peft", "tokenizers", "crawl4ai", "numpy")


class RunDirectory:
    """One run's folder. `open` it before writing, `close` it at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yml"
        self.state_file = path / "state.json"
        self.probe_file = path / "probe.json"  # how far engine and trainer were apart at version 0
        self.inputs_file = path / "inputs.json"
        self.surroundings_file = path / "surroundings.json"
        self.plan_file = path / "plan.json"
        self.metrics_file = path / "metrics.jsonl"
        self.evals_file = path / "evals.jsonl"
        self.model = path / "model"
        self.logs = path / "logs"
        self.controller_log = self.logs / "controller.log"
        self.status_file = path / "status.json"
        self.bad = path / "bad"
        self.untied = path / "policies" / "untied"
        self.latest = path / "checkpoints" / "latest"
        self._lock: IO[str] | None = None

    def trajectories(self, step: int) -> Path:
        return self.path / "trajectories" / f"{step:06d}.jsonl"

    def beside(self, kind: Kind, step: int) -> Path:
        """Return where `kind` of a step's rollouts lies, beside their journal."""
        return beside(self.path / "trajectories", kind, step)

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"{step:06d}"

    def policy(self, policy_version: int) -> Path:
        return self.path / "policies" / f"{policy_version:06d}"

    @classmethod
    def choose(cls, project: Path, name: str, *, fresh: bool) -> "RunDirectory":
        """Return runs/<name>, or with `fresh` the first of runs/<name>, -2, -3, … that is new.

        New is one, too, that was refused before anything was made in it.

        Raises CheckpointError where something that is no folder stands in its place.
        """
        path = project / "runs" / name
        number = 2
        while fresh and os.path.lexists(path) and not cls(path)._was_only_opened():
            path = project / "runs" / f"{name}-{number}"
            number += 1
        for place in (path.parent, path):
            if os.path.lexists(place) and not place.is_dir():
                raise CheckpointError(
                    f"{place} is no folder, and the run's files go there: move it away, or give "
                    "the project another folder"
                )
        return cls(path)

    def open(self) -> None:
        """Make the folder and take its lock; raises CheckpointError if another run holds it."""
        for folder in (self.path, self.logs, self.path / "trajectories", self.path / "policies"):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (self.path / ".lock").open("a")
        try:
            _take(lock)
        except OSError as error:
            lock.close()
            holder = json.loads((self.path / ".lock").read_text(encoding="utf-8") or "{}")
            raise CheckpointError(
                f"{self.path} is held by a run with pid {holder.get('pid', '?')} on "
                f"{holder.get('host', '?')}; wait for it, stop it, or use --fresh"
            ) from error
        self._lock = lock
        lock.truncate(0)
        lock.write(json.dumps(_holder()))
        lock.flush()
        recover_folder(self.latest)
        recover_folder(self.model)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder for a block. If it is gone at the end, that is why the block failed."""
        self.open()
        try:
            yield
        except Interrupted:
            raise
        # A file that is missing is told by whoever wants it: an engine, a trainer, a publication.
        except (OSError, RnowError):
            self.check_there()
            raise
        finally:
            self.close()

    @property
    def has_begun(self) -> bool:
        """Whether it holds anything that was made with its config: a checkpoint or a rollout."""
        plain = (self.path / "trajectories").glob("[0-9]*.jsonl")
        return self.latest.exists() or any(path.stat().st_size for path in plain)

    def _was_only_opened(self) -> bool:
        is_run = (self.path / ".lock").is_file()
        return is_run and not (self.state_file.exists() or self.has_begun or self.holder())

    def holder(self) -> dict[str, Any] | None:
        """Return pid and host of the process that runs here now; None where none does."""
        try:
            lock = (self.path / ".lock").open(encoding="utf-8")
        except FileNotFoundError:
            return None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                holder: dict[str, Any] = json.loads(lock.read() or "{}")
                return holder
        return None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def state(self) -> dict[str, Any]:
        """Return state.json, or {} where no run has begun."""
        return read_record(self.state_file, json.loads) if self.state_file.exists() else {}

    def write_state(self, *, step: int, num_steps: int, finished: bool) -> None:
        state = {
            "step": step,
            "num_steps": num_steps,
            "policy_version": step,
            "finished": finished,
            "holder": None if finished else _holder(),
        }
        replace_file(self.state_file, json.dumps(state, indent=1) + "\n")

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Save the resolved config, with the versions that made the run."""
        versions = "".join(f"#   {name} {value}\n" for name, value in package_versions().items())
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        replace_file(self.config_file, f"# Resolved by rnow; made with\n{versions}{text}")

    def read_config(self) -> dict[str, Any]:
        return read_record(self.config_file, yaml.safe_load)

    def write_inputs(self, fingerprints: Mapping[str, str]) -> None:
        """Save what the run's prompts, tools and tokenizer were."""
        replace_file(self.inputs_file, json.dumps(dict(fingerprints), indent=1) + "\n")

    def read_inputs(self) -> dict[str, str]:
        return read_record(self.inputs_file, json.loads)

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Save what the run was to take, when it began; of a run that goes on, the first stays."""
        if not self.has_begun or not self.plan_file.exists():
            replace_file(self.plan_file, json.dumps(dict(plan), indent=1) + "\n")

    def read_plan(self) -> dict[str, Any]:
        """Return what `write_plan` saved; {} where nothing was."""
        try:
            plan: dict[str, Any] = json.loads(self.plan_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return plan

    def write_surroundings(self, surroundings: Surroundings) -> None:
        """Save what templates and tools of this run read of clock and environment."""
        replace_file(self.surroundings_file, json.dumps(surroundings.as_json(), indent=1) + "\n")

    def read_surroundings(self) -> Surroundings | None:
        """Return what was saved; None of a run that has not begun, or was made before this was."""
        if not self.surroundings_file.is_file():
            return None
        return Surroundings.of_json(read_record(self.surroundings_file, json.loads))

    def check_there(self) -> None:
        """Raise CheckpointError if the folder that was opened is not the one at its path now.

        Deleted or moved files can be written to their end, so nothing else would tell.
        """
        if self._lock is not None and not _is_at(self.path / ".lock", self._lock.fileno()):
            raise CheckpointError(
                f"{self.path} was deleted or moved while its run went on, so nothing more of the "
                "run can be kept. It ends here; move the folder back and run again to go on from "
                "its last checkpoint"
            )

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        self.check_there()
        append_line(self.metrics_file, metrics)

    def append_evaluation(self, figures: Mapping[str, Any]) -> None:
        append_line(self.evals_file, figures)

    def read_metrics(self) -> list[dict[str, Any]]:
        return read_lines(self.metrics_file)

    def read_evaluations(self) -> list[dict[str, Any]]:
        return read_lines(self.evals_file)

    def rewind(self, step: int, *, max_lag: int = 0) -> None:
        """Forget metrics and evaluations of `step` and later, and journals that cannot be gone on
        with: those of steps after it, but for `max_lag` of them, which its weights sampled."""
        for file in (self.metrics_file, self.evals_file):
            kept = [line for line in read_lines(file) if line["step"] < step]
            if file.exists():
                replace_file(file, "".join(json.dumps(line) + "\n" for line in kept))
        for path in journals(self.path / "trajectories"):
            if int(path.stem) > step + max_lag:
                path.unlink(missing_ok=True)
                archived(path).unlink(missing_ok=True)
        forget_beside(self.path / "trajectories", since=step)
        expand(self.trajectories(step))

    def archive_trajectories(self, *, before: int, max_bytes: float) -> list[Path]:
        """Compress the journals of steps below `before`; return those that had to go for room."""
        for path in journals(self.path / "trajectories"):
            if int(path.stem) < before and path.exists():
                compress(path)
        return forget_oldest(self.path / "trajectories", max_bytes=max_bytes)

    def forget_checkpoints(self, keep_last: int) -> None:
        """Remove the oldest checkpoints that save_step made, beyond `keep_last`."""
        steps = sorted((self.path / "checkpoints").glob("[0-9]*"))
        for folder in steps[: max(0, len(steps) - keep_last)]:
            shutil.rmtree(folder)

    def forget_policies(self, before: int) -> None:
        """Remove published weights of versions below `before`."""
        for folder in (self.path / "policies").glob("[0-9]*"):
            if int(folder.name) < before:
                shutil.rmtree(folder)


def _take(lock: IO[str]) -> None:
    """Lock the file, or raise OSError; whoever only looks holds it for an instant."""
    for _ in range(NUM_TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.02)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def package_versions() -> dict[str, str]:
    """Return the versions on which the numbers of a run depend."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def slug(name: str) -> str:
    """Turn a project's name into a folder's: "MedBrowse Agent (v2)" -> "medbrowse-agent-v2"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"
