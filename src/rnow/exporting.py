"""`rnow export`: a run's model as a folder that transformers, peft and vLLM load as is."""

from pathlib import Path

import yaml

from rnow.errors import CheckpointError
from rnow.model_files import find_model
from rnow.model_folder import export_model
from rnow.rundir import RunDirectory

__all__ = ["export_run"]


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
    if target.exists() and any(target.iterdir()):
        raise CheckpointError(f"{target} is not empty; name another folder with --output")
    base: str | None = None
    if merge and (run.model / "adapter_config.json").exists():
        config = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))
        project = run.path.resolve().parent.parent
        files = find_model("model.path", config["model"]["path"], project=project)
        base = str(files.folder) if files.folder else files.path
    export_model(run.model, target, base=base)
    return target
