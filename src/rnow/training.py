"""What `rnow run` and `rnow eval` do with a project: find the models, choose the run, go."""

import asyncio
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rnow.config import LoadedConfig, require_distill
from rnow.errors import Interrupted, UsageError
from rnow.model_files import fetch_model
from rnow.page_stores import require_contact
from rnow.placing import EngineRole, find_python, place_roles
from rnow.rundir import RunDirectory, slug
from rnow.serving import Serving, adapter_rank, sampling_spec, trainer_environment

__all__ = ["evaluate_project", "run_name", "train_project"]


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
    placement = place_roles(loaded, project)
    require_contact(loaded)
    for line in placement.lines():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    environ = dict(os.environ)
    # torch counts GPUs when it is first used, as these variables say.
    os.environ.update(trainer_environment(placement.plan, environ))
    # Models can run here, so what takes seconds to import is needed.
    from rnow.session import ModelFolders, Session, run_session

    session = Session(
        loaded=loaded,
        directory=project,
        run=run,
        models=ModelFolders(
            student=fetch_model(placement.models["student"]),
            teacher=fetch_model(
                placement.models["teacher"], weights=placement.engines["teacher"] != "url"
            ),
        ),
        placement=placement,
        python=find_python(loaded.config, project),
        environ=environ,
    )
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
    placement = place_roles(loaded, project)
    require_contact(loaded)
    if model is None:
        run = RunDirectory(project / "runs" / run_name(loaded, project))
        model = str(run.model) if run.model.is_dir() else "base"
    role: EngineRole = "teacher" if model == "teacher" else "student"
    folder = None if model in ("base", "teacher") else _model_folder(project, model)
    adapter = folder if folder and (folder / "adapter_config.json").exists() else None
    if folder is not None and adapter is None and placement.engines[role] == "url":
        raise UsageError(
            f"--model {model} is a whole model, and engine.url names a server that has its own; "
            "evaluate it with engine.url=null"
        )
    if folder is not None and adapter is None:
        base = folder
    else:
        has_weights = placement.engines[role] != "url"
        base = fetch_model(placement.models[role], weights=has_weights)
    from rnow.evaluating import Subject, evaluate_model, show_evaluation

    # Stays where something goes wrong, since messages name the logs in it.
    scratch = Path(tempfile.mkdtemp(prefix="rnow-eval-"))
    serving = Serving(
        config=loaded.config,
        placement=placement,
        python=find_python(loaded.config, project),
        logs=scratch,
        untied=scratch / "untied",
        environ=os.environ,
    )
    rank = None if adapter is None else adapter_rank(adapter)
    evaluation = asyncio.run(
        evaluate_model(
            loaded,
            project,
            subject=Subject(
                engine=sampling_spec(serving, role, base, lora_rank=rank), adapter=adapter
            ),
            max_samples=max_samples,
            say=partial(console.print, highlight=False, markup=False, soft_wrap=True),
        )
    )
    shutil.rmtree(scratch, ignore_errors=True)
    show_evaluation(evaluation, title=model, console=console)
    return {"model": model, **evaluation.as_json()}


def run_name(loaded: LoadedConfig, project: Path) -> str:
    """Return the folder under runs/ when nobody names one: the project's name, or its folder's."""
    return slug(loaded.project_name or project.resolve().name)


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
