"""What `rnow run` does with a project: find the models, choose the run, go."""

import asyncio
import os
from pathlib import Path

from rich.console import Console

from rnow.config.load import LoadedConfig, require_distill
from rnow.errors import Interrupted, UsageError
from rnow.plan.engine_specs import Serving, trainer_environment
from rnow.plan.model_files import fetch_model
from rnow.plan.placing import place_roles
from rnow.rollout.project_pages import require_contact
from rnow.runs.folder import RunDirectory, slug


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
    serving = Serving.here(loaded, project, placement=placement, logs=run.logs, untied=run.untied)
    # torch counts GPUs when it is first used, as these variables say.
    os.environ.update(trainer_environment(placement.plan, serving.environ))
    # Models can run here, so what takes seconds to import is needed.
    from rnow.training.session import ModelFolders, Session, run_session

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
        serving=serving,
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


def run_name(loaded: LoadedConfig, project: Path) -> str:
    """Return the folder under runs/ when nobody names one: the project's name, or its folder's."""
    return slug(loaded.project_name or project.resolve().name)
