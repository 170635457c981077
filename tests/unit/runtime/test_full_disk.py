"""A disk that is full: a real file system of 300 kB, which only root can make."""

import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest
from builders import load_policy, qwen3
from scored import make_scored

from rnow.commands.check.disk import check_disk
from rnow.config.load import load_config
from rnow.engines.vllm.untied import untied_folder
from rnow.errors import SpaceError
from rnow.plan.costs import Costs, Estimate
from rnow.records import RolloutId
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import Journal, read_journal
from rnow.runtime.atomic_files import folder_bytes, replace_file, replace_folder
from rnow.runtime.logs import log_to

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a file system")

MESSAGE = (
    "the disk is full: {path} was being written, which needs {needs}; {free} are free. What was "
    "there before is as it was. Free some space; a run goes on with the same command"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    size = shutil.disk_usage(disk).free
    ballast.write_bytes(b"x" * size)
    return ballast


def costs(weights: float, journal: float) -> Costs:
    """What a run takes of a disk, and of all else nothing."""
    none = Estimate(value=0, basis="")
    return Costs(
        steps=none,
        rollouts=none,
        evaluations=none,
        tokens_out=none,
        tokens_in=none,
        disk_bytes=Estimate(value=weights, basis=""),
        journal_bytes=Estimate(value=journal, basis=""),
        step_s=None,
        total_s=None,
        gpu_hours=None,
        bound_by=None,
        place="",
    )


def unfinished(folder: Path, *, num_bytes: int) -> None:
    """Write what has room, and then what has none."""
    (folder / "first").write_bytes(b"x" * num_bytes)
    (folder / "second").write_bytes(b"x" * num_bytes)


def test_a_file_that_cannot_be_written_is_as_it_was(disk: Path) -> None:
    path = disk / "state.json"
    replace_file(path, "old")
    ballast = fill(disk)
    with pytest.raises(SpaceError) as caught:
        replace_file(path, "new" * 50_000)
    assert str(caught.value) == MESSAGE.format(path=path, needs="0.2 MB", free="0.0 MB")
    assert path.read_text() == "old"
    assert sorted(found.name for found in disk.iterdir()) == ["ballast", "state.json"]
    ballast.unlink()
    replace_file(path, "new")
    assert path.read_text() == "new"


def test_a_folder_that_cannot_be_written_is_as_it_was(disk: Path) -> None:
    folder = disk / "latest"

    def write(size: int):
        return lambda folder: (folder / "weights").write_bytes(b"w" * size)

    replace_folder(folder, write(100_000))
    with pytest.raises(SpaceError) as caught:
        replace_folder(folder, write(250_000), needs_bytes=250_000)
    assert str(caught.value) == MESSAGE.format(path=folder, needs="0.3 MB", free="0.2 MB")
    assert (folder / "weights").read_bytes() == b"w" * 100_000
    assert [found.name for found in disk.iterdir()] == ["latest"]


def test_a_folder_whose_place_cannot_be_made_is_told(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "mkdir", no_room)
    with pytest.raises(SpaceError, match="checkpoints/latest was being written, which needs 0"):
        replace_folder(disk / "checkpoints" / "latest", lambda _: None)


def test_a_folder_is_measured_while_what_is_in_it_goes(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_bytes(b"12345")
    (tmp_path / "another's").symlink_to(Path(__file__))
    assert folder_bytes(tmp_path) == 5
    assert folder_bytes(tmp_path / "nowhere") == 0


def test_weights_that_cannot_be_published_are_told_and_leave_no_half(
    disk: Path, tmp_path: Path
) -> None:
    qwen3(vocab_size=2048).save_pretrained(tmp_path / "student")
    policy = load_policy(tmp_path / "student", tuning="full")
    size = sum(one.nbytes for one in policy.trainable_state().values())
    with pytest.raises(SpaceError) as caught:
        policy.save(disk / "policies" / "000000")
    needs = f"{ceil(size / 1e5) / 10} MB"
    assert str(caught.value) == MESSAGE.format(
        path=disk / "policies" / "000000", needs=needs, free="0.3 MB"
    )
    assert not (disk / "policies" / "000000").exists()


def test_a_folder_is_told_with_what_its_writer_knows_of_its_size(
    disk: Path, tmp_path: Path
) -> None:
    qwen3(vocab_size=2048).save_pretrained(tmp_path / "student")
    policy = load_policy(tmp_path / "student", tuning="full")
    with pytest.raises(SpaceError) as caught:
        replace_folder(disk / "model", policy.save)
    assert str(caught.value).startswith(f"the disk is full: {disk / 'model'} was being written")
    with pytest.raises(SpaceError, match=r"model was being written, which needs 0\.4 MB"):
        # What had room is needed at least.
        replace_folder(disk / "model", lambda folder: unfinished(folder, num_bytes=250_000))
    assert list(disk.iterdir()) == []


def test_an_untied_head_that_cannot_be_written_is_told(disk: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    qwen3(vocab_size=8192, tie_word_embeddings=True).save_pretrained(model)
    with pytest.raises(SpaceError, match=r"lm_head\.safetensors was being written, which needs"):
        untied_folder(model, disk / "untied")


def test_a_journal_keeps_what_it_has_and_goes_on_once_there_is_room(disk: Path) -> None:
    path = disk / "trajectories" / "000000.jsonl"
    journal = Journal(path)
    journal.append(make_scored(RolloutId(0, 0, 0)))
    ballast = fill(disk)

    def append_many() -> None:
        for prompt in range(1, 100):
            journal.append(make_scored(RolloutId(0, prompt, 0)))

    with pytest.raises(SpaceError, match=r"000000\.jsonl was being written, which needs 0\.1 MB"):
        append_many()
    journal.close()
    ballast.unlink()
    whole = read_journal(path)
    assert whole
    again = Journal(path)
    again.append(make_scored(RolloutId(0, 100, 0)))
    again.close()
    assert [item.trajectory.id for item in read_journal(path)] == [
        *(item.trajectory.id for item in whole),
        RolloutId(0, 100, 0),
    ]


def test_metrics_say_what_was_being_written(disk: Path) -> None:
    run = RunDirectory(disk)
    fill(disk)
    run.metrics_file.touch()

    def append_many() -> None:
        for step in range(200):
            run.append_metrics({"step": step, "reverse_kl": 0.5})

    with pytest.raises(SpaceError, match=r"metrics\.jsonl was being written"):
        append_many()


def test_a_log_that_cannot_be_written_costs_its_lines_alone(
    disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ballast = fill(disk)
    log = disk / "controller.log"
    with log_to(log):
        for _ in range(200):
            logging.getLogger("rnow.test").info("lost")
        ballast.unlink()
        logging.getLogger("rnow.test").info("kept")
    said = capfd.readouterr().err
    assert said == f"{log} cannot be written: [Errno 28] No space left on device\n"
    assert log.read_text().endswith("rnow.test: kept\n")


@pytest.mark.parametrize(
    ("weights", "least", "save_step", "severity", "message"),
    [
        (1e5, 1e5, -1, None, ""),
        # A run that saves once has no second checkpoint, nor numbered ones.
        (
            *(1e6, 2e5, -1, "warning"),
            "a run needs up to 1.1 MB for all that it writes, and the disk of {disk} has room for "
            "0.3 MB; free some space, lower trainer.keep_trajectories_gb, or make runs/ a link to "
            "a larger disk",
        ),
        (
            *(1e6, 2e5, 5, "warning"),
            "a run needs up to 1.1 MB for all that it writes, and the disk of {disk} has room for "
            "0.3 MB; free some space, lower trainer.keep_last or trainer.keep_trajectories_gb, or "
            "make runs/ a link to a larger disk",
        ),
        (
            *(1e6, 5e5, 5, "error"),
            "a run needs 0.5 MB for the checkpoint that it ends with, and the disk of {disk} has "
            "room for 0.3 MB; free some space, or make runs/ a link to a larger disk",
        ),
    ],
)
def test_a_disk_that_will_be_full_is_known_before_the_run(
    disk: Path, weights: float, least: float, save_step: int, severity: str | None, message: str
) -> None:
    (disk / "config.yml").write_text(
        "data: {batch_size: 1}\nmodel: {path: a}\nteacher: {path: b}\ntrainer: {num_epochs: 1}\n"
    )
    (disk / "train.jsonl").touch()
    loaded = load_config(disk, overrides=[f"trainer.save_step={save_step}"])
    planned = replace(costs(weights, 1e5), least_disk_bytes=least)
    found = check_disk(loaded, disk, planned)
    if severity is None:
        assert found is None
        return
    assert found is not None
    (problem,) = found.problems
    assert (problem.severity, problem.message) == (severity, message.format(disk=disk))
    # What the run has written already is no more to be written.
    run = disk / "runs" / "disk" / "checkpoints"
    run.mkdir(parents=True)
    (run / "weights").write_bytes(b"x" * 200_000)
    again = check_disk(loaded, disk, planned)
    assert again is not None
    assert "has room for 0.3 MB" in again.problems[0].message
