import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from builders import write_hollow_model
from pydantic import ValidationError

from rnow.config.load import LoadedConfig, load_config
from rnow.errors import EngineError, Interrupted, RnowError, UsageError
from rnow.evaluation.subject import Choice, choose_model, prepared_subject
from rnow.plan.hosted_models import why_without_weights
from rnow.plan.model_files import ModelFiles

CONFIG = """
data: {batch_size: 16}
model: {path: models/student}
teacher: {path: models/teacher}
trainer: {num_epochs: 1}
engine: {kind: local}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "config.yml").write_text(CONFIG)
    for folder in ("models/student", "models/teacher", "elsewhere"):
        write_hollow_model(tmp_path / folder)
    return tmp_path


def add_checkpoint(project: Path, run: str, name: str, *, step: int, tuning: str = "lora") -> Path:
    folder = project / "runs" / run / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step}))
    (folder / "weights.safetensors").write_bytes(b"weights")
    config = f"model: {{qlora_rank: 8, tuning: {tuning}}}"
    (project / "runs" / run / "config.yml").write_text(config)
    return folder


def add_adapter(project: Path, run: str) -> Path:
    folder = project / "runs" / run / "model"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 16}))
    return folder


def loaded_from(project: Path, *overrides: str) -> LoadedConfig:
    return load_config(project, overrides=overrides)


def chosen(project: Path, name: str | None) -> Choice:
    return choose_model(loaded_from(project), project, name=name, run="clinic")


def model(project: Path, role: str) -> ModelFiles:
    key = "model.path" if role == "student" else "teacher.path"
    return ModelFiles(
        key=key,
        path=f"models/{role}",
        folder=project / "models" / role,
        weight_bytes=(project / "models" / role / "model.safetensors").stat().st_size,
    )


def test_base_and_teacher_are_the_models_of_the_config(project: Path) -> None:
    base = Choice(name="base", role="student", model=model(project, "student"))
    assert chosen(project, "base") == base
    assert chosen(project, "teacher") == Choice(
        name="teacher", role="teacher", model=model(project, "teacher")
    )
    assert chosen(project, None) == base


def test_without_a_name_it_is_what_the_projects_run_has_come_to(project: Path) -> None:
    folder = add_checkpoint(project, "clinic", "latest", step=3)
    student = model(project, "student")
    assert chosen(project, None) == Choice(
        name=f"{project}/runs/clinic after step 3",
        role="student",
        model=student,
        checkpoint=folder,
        lora_rank=8,
    )
    adapter = add_adapter(project, "clinic")
    assert chosen(project, None) == Choice(
        name=str(adapter), role="student", model=student, adapter=adapter, lora_rank=16
    )
    assert chosen(project, "base").adapter is None


def test_a_run_a_checkpoint_and_a_folder_are_found_by_name_and_by_path(project: Path) -> None:
    add_checkpoint(project, "other", "latest", step=5)
    kept = add_checkpoint(project, "other", "000002", step=2, tuning="full")
    for name in ("runs/other/checkpoints/000002", "other/checkpoints/000002", str(kept)):
        choice = chosen(project, name)
        assert (choice.checkpoint, choice.lora_rank) == (kept, None)
        assert choice.name == f"{project}/runs/other after step 2"
    assert chosen(project, "other").name == f"{project}/runs/other after step 5"
    whole = chosen(project, "elsewhere")
    assert (whole.model.key, whole.model.folder) == ("--model", project / "elsewhere")
    assert (whole.role, whole.adapter, whole.lora_rank) == ("student", None, None)


def test_a_name_that_nothing_has_is_answered_with_those_that_there_are(project: Path) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(project, "best")
    assert str(caught.value) == (
        "--model best: there is no run and no folder of that name; take base, teacher, a Hugging "
        "Face id as owner/name, or a run: none has begun yet"
    )
    add_adapter(project, "first")
    add_checkpoint(project, "second", "latest", step=1)
    with pytest.raises(UsageError, match=r"or a run: first, second$"):
        chosen(project, "best")


def test_a_model_of_the_hub_is_named_by_its_id(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Read from the environment when the library is imported, which it is by now.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(project / "hub"))
    away = chosen(project, "Qwen/Qwen3-0.6B")  # to be downloaded
    assert (away.name, away.model.path, away.model.folder) == (("Qwen/Qwen3-0.6B",) * 2 + (None,))
    assert (away.role, away.model.key, away.adapter) == ("student", "--model", None)
    cached = project / "hub" / "models--lab--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("1")
    shutil.copytree(project / "elsewhere", cached / "snapshots" / "1")
    here = chosen(project, "lab/tiny")
    assert (here.name, here.model.folder) == ("lab/tiny", cached / "snapshots" / "1")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("gpt-5-nano", "is a model behind an API"),
        ("openai/gpt-4o", "is a model behind an API"),
        ("claude-sonnet-4", "is a model behind an API"),
        ("3f2b8c1e-7d0a-4d6e-9b1e-0a1b2c3d4e5f", "is an id of a hosted service's model"),
        ("cm3x8k2j40001abcdefghijkl", "is an id of a hosted service's model"),
    ],
)
def test_a_name_whose_weights_nobody_has_is_told_apart(project: Path, name: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(project, name)
    assert str(caught.value).startswith(f"--model {name}: {name} {what}")


@pytest.mark.parametrize(
    "name", ["openai/gpt-oss-20b", "EleutherAI/gpt-j-6b", "gpt2", "Qwen/Qwen3-8B", "google/gemma-3"]
)
def test_open_models_are_not_taken_for_those_of_an_api(name: str) -> None:
    assert why_without_weights(name) is None


def test_a_server_of_ones_own_does_not_become_another_model(project: Path) -> None:
    add_checkpoint(project, "full", "latest", step=1, tuning="full")
    loaded = loaded_from(project, "engine={url: http://127.0.0.1:1}")
    for name, shown in (
        ("elsewhere", str(project / "elsewhere")),
        ("full", f"{project}/runs/full after step 1"),
    ):
        preparing = prepared_subject(
            loaded, project, choice=chosen(project, name), command="eval", say=lambda _: None
        )
        with pytest.raises(UsageError) as caught, preparing:
            pass
        assert str(caught.value) == (
            f"--model {shown} is a whole model, and engine.url names a server that has its own; "
            "take it with engine.url=null"
        )


def test_nothing_is_left_of_a_model_that_could_not_be_made(project: Path) -> None:
    add_checkpoint(project, "first", "latest", step=1)  # of a run whose config.yml lacks data
    command = f"unmade-{os.getpid()}"
    preparing = prepared_subject(
        loaded_from(project),
        project,
        choice=chosen(project, "first"),
        command=command,
        say=lambda _: None,
    )
    with pytest.raises(ValidationError), preparing:
        pass
    assert not list(Path(tempfile.gettempdir()).glob(f"rnow-{command}-*"))


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [
        (None, True),
        (EngineError("it ended; see student.log"), True),
        (UsageError("-e 7 is out of range"), False),
        (Interrupted("Ctrl-C", 130), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_logs_outlive_the_weights_beside_them_where_they_are_to_be_read(
    project: Path, error: BaseException | None, is_kept: bool
) -> None:
    said: list[str] = []
    choice = chosen(project, "base")
    loaded = loaded_from(project)
    with (
        contextlib.suppress(RnowError, KeyboardInterrupt),
        prepared_subject(loaded, project, choice=choice, command="eval", say=said.append) as (
            _,
            logs,
        ),
    ):
        (logs.folder / "weights" / "checkpoint").mkdir(parents=True)
        (logs.folder / "student.log").touch()
        if error is not None:
            raise error
    assert (f"logs: {logs.folder}" in said) == is_kept
    assert logs.folder.exists() == is_kept
    if is_kept:
        assert [path.name for path in logs.folder.iterdir()] == ["student.log"]
        shutil.rmtree(logs.folder)
