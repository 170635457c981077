"""What `rnow run` and `rnow eval` do with a project: find the models, choose the run, go."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from rnow.config import LoadedConfig, require_distill
from rnow.devices import find_devices, where_to_run
from rnow.errors import ConfigError, Interrupted, ModelError, UsageError
from rnow.model_files import ModelFiles, find_model
from rnow.rundir import RunDirectory, slug

__all__ = ["evaluate_project", "find_models", "run_name", "train_project"]


def train_project(
    loaded: LoadedConfig, project: Path, *, name: str | None, fresh: bool, console: Console
) -> RunDirectory:
    """Train to the end, or go on with an unfinished run; a finished one is left as it is."""
    require_distill(loaded.config)
    if name is not None and (name in ("", ".", "..") or "/" in name):
        raise UsageError(f"--name {name!r}: give the name of a folder under runs/, without a slash")
    run = RunDirectory.choose(project, name or run_name(loaded, project), fresh=fresh)
    if run.state().get("finished"):
        console.print(
            f"{run.path} is finished; its model is in {run.model}. "
            f"To train another one: rnow run {project} --fresh",
            highlight=False,
            soft_wrap=True,
        )
        return run
    files, device = find_models(loaded, project)
    _require_contact(loaded)
    # Models can run here, so what takes seconds to import is needed.
    from rnow.session import ModelFolders, Session, run_session

    models = ModelFolders(student=_folder(files[0]), teacher=_folder(files[1]), device=device)
    session = Session(loaded=loaded, directory=project, run=run, models=models)
    try:
        asyncio.run(run_session(session, console))
    except Interrupted as stop:
        state = run.state()
        raise Interrupted(
            f"{stop}: {state.get('step', 0)} of {state.get('num_steps', '?')} steps are done and "
            f"saved in {run.path}. To go on: rnow run {project} --name {run.path.name}"
            + (", with the same overrides" if loaded.overrides else ""),
            stop.exit_code,
        ) from stop
    console.print(f"done: the model is in {run.model}", highlight=False, soft_wrap=True)
    return run


def evaluate_project(
    loaded: LoadedConfig,
    project: Path,
    *,
    model: str | None,
    max_samples: int | None,
    console: Console,
) -> dict[str, Any]:
    """Return the figures of one model on data.val_file, and show them as a table.

    `model`: base, teacher, the name of a run, a folder with a model or an adapter; None: the
    project's finished run if there is one, else base.
    """
    require_distill(loaded.config)
    (student, teacher), device = find_models(loaded, project)
    _require_contact(loaded)
    if model is None:
        run = RunDirectory(project / "runs" / run_name(loaded, project))
        model = str(run.model) if run.model.is_dir() else "base"
    from rnow.evaluating import Subject, evaluate_model, show_evaluation

    subject = Subject(base=_folder(student), dtype=loaded.config.engine.dtype, device=device)
    if model == "teacher":
        dtype = require_distill(loaded.config).dtype
        subject = Subject(base=_folder(teacher), dtype=dtype, device=device)
    elif model != "base":
        folder = _model_folder(project, model)
        is_adapter = (folder / "adapter_config.json").exists()
        subject = replace(subject, adapter=folder) if is_adapter else replace(subject, base=folder)
    evaluation = asyncio.run(
        evaluate_model(loaded, project, subject=subject, max_samples=max_samples)
    )
    show_evaluation(evaluation, title=model, console=console)
    return {"model": model, **evaluation.as_json()}


def find_models(loaded: LoadedConfig, project: Path) -> tuple[tuple[ModelFiles, ModelFiles], str]:
    """Return student and teacher, and the device for them: cuda or cpu.

    Raises ModelError if they cannot run on this machine.
    """
    teacher = require_distill(loaded.config)
    files = (
        find_model("model.path", loaded.config.model.path, project=project),
        find_model("teacher.path", teacher.path, project=project),
    )
    # What is said of one role must hold for both: this version runs them in one process.
    kinds = {loaded.config.engine.kind, teacher.engine or loaded.config.engine.kind}
    kind = "auto" if "auto" in kinds else "local"
    device = where_to_run(kind, devices=find_devices(), models=files)
    return files, device


def run_name(loaded: LoadedConfig, project: Path) -> str:
    """Return the folder under runs/ when nobody names one: the project's name, or its folder's."""
    return slug(loaded.project_name or project.resolve().name)


def _require_contact(loaded: LoadedConfig) -> None:
    """Refuse rollouts in which every page of the open web would be an error."""
    if loaded.config.browser.allow_hosts and loaded.config.browser.contact is None:
        raise ConfigError(
            f"{loaded.file}: browser.contact is null: no site outside this machine is read until "
            "it is your mail or web address, which those sites are told"
        )


def _folder(files: ModelFiles) -> Path:
    if files.folder is not None:
        return files.folder.resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(files.path))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{files.key}: {files.path} is not on this machine and could not be downloaded: {error}"
        ) from error


def _model_folder(project: Path, model: str) -> Path:
    candidates = (project / "runs" / model / "model", project / model, Path(model))
    for folder in (*candidates, *(candidate / "model" for candidate in candidates)):
        if any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
            return folder
    runs = sorted(path.parent.name for path in (project / "runs").glob("*/model"))
    raise UsageError(
        f"--model {model}: there is no run and no folder of that name; "
        f"take base, teacher, or a run: {', '.join(runs) or 'none is finished yet'}"
    )
