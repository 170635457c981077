"""`rnow export`: a run's model as a folder that transformers, peft and vLLM load as is."""

import json
from pathlib import Path
from typing import Annotated

import typer

from rnow.commands.arguments import RunFolder, make_console
from rnow.errors import CheckpointError


def export(
    run_folder: RunFolder,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where the model goes, an empty or new folder. Without it: exported/ in RUN.",
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="Add a LoRA adapter to the model that it was trained on, and write one whole "
            "model. Without it the adapter stays a small folder beside that model.",
        ),
    ] = False,
) -> None:
    """Write the model of a finished run as a folder that transformers, peft and vLLM load.

    Example: rnow export runs/demo --merge
    """
    target = export_run(run_folder, output=output, merge=merge)
    make_console().print(f"The model is in {target}")


def export_run(run_folder: Path, *, output: Path | None, merge: bool) -> Path:
    """Write the run's model to `output` (default: exported/ in the run's folder); return it."""
    from rnow.plan.model_files import find_model
    from rnow.runs.folder import RunDirectory
    from rnow.runs.model_folder import export_model

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
        config = run.read_config()
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
