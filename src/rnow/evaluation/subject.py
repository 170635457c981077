"""The model that `rnow eval` and `rnow test` look at: from its name to an engine that samples.

    base, teacher, run, checkpoint, folder, hub's id ─▶ Choice ─▶ placed alone ─▶ Subject ─▶ engine

Only what samples has to fit, on this machine or on those of resources.cluster: nobody trains or
scores.
"""

import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rnow.cluster.machines import find_machines
from rnow.cluster.starting import opened_cluster_of, starter_of
from rnow.config.load import LoadedConfig
from rnow.engines.base import Engine
from rnow.engines.opening import open_engine
from rnow.engines.spec import EngineSpec
from rnow.engines.vllm.deaths import Deaths
from rnow.errors import DataError, Interrupted, UsageError
from rnow.plan.engine_specs import Serving, adapter_rank, sampling_spec, trainer_environment
from rnow.plan.hosted_models import why_without_weights
from rnow.plan.model_files import ModelFiles, fetch_model, find_model
from rnow.plan.placing import EngineRole, place_sampler
from rnow.runs.folder import RunDirectory
from rnow.runtime.console import StartTeller
from rnow.runtime.own_variables import set_for_this_process

BASE_VERSION = 0
ADAPTER_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A model as the user named it, and what of it is on disk."""

    name: str  # base, teacher, what followed --model, or the folder that was found
    role: EngineRole  # whose engine settings hold for it
    model: ModelFiles  # the weights that an engine starts from
    adapter: Path | None = None  # folder with an adapter on them
    checkpoint: Path | None = None  # of a run, which is to become an adapter or a model first
    lora_rank: int | None = None  # of the adapter, or of the checkpoint's


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model that an engine can be opened for."""

    engine: EngineSpec  # of a folder with model and tokenizer
    adapter: Path | None = None  # folder with an adapter on it
    serving: Serving | None = None  # where servers of it go; None: this machine


@dataclass(slots=True, kw_only=True)
class Logs:
    """A folder for the logs of one look at a model, and whether anybody will want to read them."""

    folder: Path
    are_kept: bool = False


def choose_model(loaded: LoadedConfig, project: Path, *, name: str | None, run: str) -> Choice:
    """Find the model called `name`: base, teacher, a run, a checkpoint, a folder, a hub's id.

    None: what the project's run called `run` has come to, if it has begun: its model, else its
    newest checkpoint; else base. Raises UsageError for a name that nothing has.
    """
    config = loaded.config
    if name is None:
        name = str(project / "runs" / run) if _find(project / "runs" / run) else "base"
    if name == "teacher":
        if config.teacher is None:
            kind = config.dataset_type
            raise UsageError(f"--model teacher: there is none in a project of dataset_type {kind}")
        model = find_model("teacher.path", config.teacher.path, project=project)
        return Choice(name=name, role="teacher", model=model)
    base = find_model("model.path", config.model.path, project=project)
    if name == "base":
        return Choice(name=name, role="student", model=base)
    for candidate in (project / "runs" / name, project / name, Path(name)):
        folder = _find(candidate)
        if folder is not None:
            return _choice(folder, base=base)
    named, without = find_model("--model", name, project=project), why_without_weights(name)
    if named.folder is not None:
        return replace(_choice(named.folder.absolute(), base=base), name=name)
    if "/" in name and without is None:
        without = named.why_not_downloaded
        if without is None:
            return Choice(name=name, role="student", model=named)
    found = sorted(path.name for path in (project / "runs").glob("*") if _find(path))
    raise UsageError(
        f"--model {name}: {without or 'there is no run and no folder of that name'}; take base, "
        "teacher, a Hugging Face id as owner/name, or a run: "
        + (", ".join(found) or "none has begun yet")
    )


def in_its_run(loaded: LoadedConfig, choice: Choice) -> LoadedConfig:
    """Return the config with what templates and tools read in the run that made the model, if one
    did.
    """
    place = choice.checkpoint or choice.adapter or choice.model.folder
    for folder in () if place is None else (place.absolute().parent, place.absolute().parents[1]):
        kept = RunDirectory(folder).read_surroundings()
        if kept is not None:
            return replace(loaded, surroundings=kept)
    return loaded


@contextmanager
def prepared_subject(
    loaded: LoadedConfig,
    project: Path,
    *,
    choice: Choice,
    command: str,
    say: Callable[[str], None],
) -> Iterator[tuple[Subject, Logs]]:
    """Place and fetch the model; give it with a folder for logs, which outlives the block where an
    error of it, or what it said to keep, names them.

    Raises ModelError or ConfigError where the model does not fit, UsageError where a server of the
    user's own has another one.
    """
    role, rank = choice.role, choice.lora_rank
    placement = place_sampler(
        loaded,
        project,
        role=role,
        model=choice.model,
        lora_rank=rank,
        machines=find_machines(loaded.config, project),
    )
    for line in placement.lines():
        say(line)
    is_elsewhere = placement.engines[role] == "url"
    is_whole = choice.model.key == "--model" or (choice.checkpoint is not None and rank is None)
    if is_elsewhere and is_whole:
        raise UsageError(
            f"--model {choice.name} is a whole model, and engine.url names a server that has its "
            "own; take it with engine.url=null"
        )
    model, adapter = fetch_model(choice.model, weights=not is_elsewhere), choice.adapter
    logs = Logs(folder=Path(tempfile.mkdtemp(prefix=f"rnow-{command}-")))
    weights = logs.folder / "weights"  # can be as large as the model
    serving = Serving(
        config=loaded.config, placement=placement, logs=logs.folder, untied=weights / "untied"
    )
    # torch counts GPUs when it is first used, as these variables say.
    set_for_this_process(trainer_environment(placement.plan, serving.environ, role=role))
    try:
        if choice.checkpoint is not None:
            made = _write_checkpoint(choice.checkpoint, weights / "checkpoint", student=model)
            model, adapter = (made, None) if rank is None else (model, made)
        is_made = choice.checkpoint is not None and rank is None
        spec = sampling_spec(serving, role, model, lora_rank=rank, is_made_here=is_made)
        say(f"Model: {choice.name}")
        logs.are_kept = True  # until it is known that nobody needs them
        yield Subject(engine=spec, adapter=adapter, serving=serving), logs
    except (KeyboardInterrupt, SystemExit, Interrupted, UsageError, DataError):  # name none
        logs.are_kept = False
        raise
    finally:
        shutil.rmtree(weights if logs.are_kept else logs.folder, ignore_errors=True)
        if logs.are_kept:
            say(f"logs: {logs.folder}")


@asynccontextmanager
async def open_subject(
    subject: Subject, *, say: Callable[[str], None]
) -> AsyncIterator[tuple[Engine, int]]:
    """Open the engine; give it, and the policy version to sample from.

    `say` is told of servers that start, and start again.
    """
    async with opened_cluster_of(subject.serving) as cluster:
        engine = await open_engine(
            subject.engine,
            deaths=Deaths(in_run=False),
            say=say,
            on_progress=partial(StartTeller(say), subject.engine.role),
            start=starter_of(cluster),
        )
        try:
            version = BASE_VERSION
            if subject.adapter is not None:
                version = ADAPTER_VERSION
                await engine.load_policy(subject.adapter, version)
            yield engine, version
        finally:
            await engine.aclose()


def _find(folder: Path) -> Path | None:
    """Return the model, or the checkpoint, that `folder` is or holds."""
    for place in (folder / "model", folder):
        if any((place / name).is_file() for name in ("config.json", "adapter_config.json")):
            return place
    for place in (folder, folder / "checkpoints" / "latest"):
        config = place.parent.parent / "config.yml"  # the run's, without which it is of no use
        parts = (config, place / "state.json", place / "weights.safetensors")
        if all(part.is_file() for part in parts):
            return place
    return None


def _write_checkpoint(checkpoint: Path, folder: Path, *, student: Path) -> Path:
    """Make the adapter or the model of a checkpoint; return `folder`."""
    from rnow.runs.model_folder import write_checkpoint_model

    run = RunDirectory(checkpoint.parent.parent)
    write_checkpoint_model(folder, checkpoint=checkpoint, run=run, student=student)
    return folder


def _choice(folder: Path, *, base: ModelFiles) -> Choice:
    if (folder / "weights.safetensors").is_file():
        run = RunDirectory(folder.parent.parent)
        model = run.read_config()["model"]
        rank = int(model["qlora_rank"]) if model["tuning"] == "lora" else None
        step = json.loads((folder / "state.json").read_text(encoding="utf-8"))["step"]
        return Choice(
            name=f"{run.path} after step {step}",
            role="student",
            model=base,
            checkpoint=folder,
            lora_rank=rank,
        )
    if (folder / "adapter_config.json").is_file():
        return Choice(
            name=str(folder),
            role="student",
            model=base,
            adapter=folder,
            lora_rank=adapter_rank(folder),
        )
    whole = find_model("--model", str(folder.absolute()), project=folder)
    return Choice(name=str(folder), role="student", model=whole)
