"""`rnow export`: a run's model as a folder that transformers, peft and vLLM load as is."""

import json
from pathlib import Path

import yaml

from rnow.errors import CheckpointError
from rnow.plan.model_files import find_model
from rnow.runs.folder import RunDirectory
from rnow.runs.model_folder import export_model


def export_run(run_folder: Path, *, output: Path | None, merge: bool) -> Path:
    """Write the run's model to `output` (default: exported/ in the run's folder); return it."""
    run = RunDirectory(run_folder)
    if not run.model.is_dir():
        state = run.state()
        raise CheckpointError(
            f"{run_folder} has no finished model"
            + (f" ({state['step']} of {state['num_steps']} steps are done)" if state else "")
            + "; name the folder of a finished run, as runs/NAME"
        )
    target = output or run.path / "exported"
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; name a folder with --output")
    if target.resolve().is_relative_to(run.model.resolve()):
        raise CheckpointError(f"{target} is inside the model itself; name a folder outside it")
    if target.exists() and any(target.iterdir()):
        raise CheckpointError(f"{target} is not empty; name another folder with --output")
    base: str | None = None
    if merge and (run.model / "adapter_config.json").exists():
        config = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))
        project = run.path.resolve().parent.parent
        files = find_model("model.path", config["model"]["path"], project=project)
        base = str(files.folder) if files.folder else files.path
        trained = json.loads((run.model / "adapter_config.json").read_text(encoding="utf-8"))
        # A folder then is no name to ask the hub for now.
        if files.folder is None and Path(trained["base_model_name_or_path"]).is_absolute():
            raise CheckpointError(
                f"--merge adds the adapter to the model that it was trained on, {files.path}, "
                f"which is gone from {project}; put it back, or export without --merge"
            )
    export_model(run.model, target, base=base)
    return target
