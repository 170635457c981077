"""What runs each role of a project on this machine, and where: settled before anything is loaded.

    config.yml, GPUs, is vLLM there? ─▶ an engine kind for each role ─▶ device plan (rnow.plan)

`auto` is vLLM where there are a GPU and vLLM, else this process. No torch is imported here.
"""

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rnow.config.load import LoadedConfig, require_distill
from rnow.config.settings import Config
from rnow.errors import ConfigError, ModelError
from rnow.plan.devices import Devices, check_models, find_devices, usable_gpus
from rnow.plan.make import make_plan
from rnow.plan.model_files import ModelFiles, fetch_model, find_model
from rnow.plan.network import Use, check_network
from rnow.plan.nodes import Machine, check_trainer_is_here, cluster_devices
from rnow.plan.records import EngineKind, Plan
from rnow.plan.weight_files import Weights, check_quantization
from rnow.plan.workload import Workload, load_workload

EngineRole = Literal["student", "teacher"]

_LOOK_DEADLINE_S = 30.0
_LOOK = "import importlib.util, sys; sys.exit(3 * (importlib.util.find_spec('vllm') is None))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where everything of a project runs, or the one role of it that is wanted."""

    models: Mapping[EngineRole, ModelFiles]
    engines: Mapping[EngineRole, EngineKind]
    urls: Mapping[EngineRole, tuple[str, ...]]  # of the user's own servers
    python: str | None  # interpreter with vLLM; None: this one
    device: Literal["cuda", "cpu"]  # of the trainer, and of models in this process
    plan: Plan | None  # None: no GPU
    notices: tuple[str, ...]  # one line each, for the user
    unseen: tuple[str, ...] = ()  # what of the models' weights was not looked at, for rnow check
    machines: tuple[Machine, ...] = ()  # of a cluster, this one first; (): this one alone

    def lines(self) -> tuple[str, ...]:
        """Return what is about to run where, for the terminal."""
        if self.plan is not None:
            return (*self.notices, *self.plan.lines())
        places: dict[EngineKind, str] = {
            "vllm": f"a vLLM server on the CPU{_of_machines(self.machines)}",
            "local": f"in this process, {self.device}",
        }
        engines = []
        for role, kind in self.engines.items():
            own = f"a server of your own ({', '.join(self.urls[role])})"
            engines.append(f"{role}: {places.get(kind, own)}")
        return (*self.notices, "; ".join(engines))


def place_roles(
    loaded: LoadedConfig,
    project: Path,
    *,
    devices: Devices | None = None,
    may_download: bool = True,
    machines: Sequence[Machine] = (),
) -> Placement:
    """Return where the roles run; raise ModelError or ConfigError with all that is missing.

    `devices` None: those that torch can use here, and those of the other `machines` of a cluster,
    which has this one first. A plan needs both models' config.json, which is
    fetched if it may be; else there is no plan.
    """
    config = loaded.config
    teacher = require_distill(loaded)
    models: dict[EngineRole, ModelFiles] = {
        "student": find_model("model.path", config.model.path, project=project),
        "teacher": find_model("teacher.path", teacher.path, project=project),
    }
    found = devices or usable_gpus(find_devices())
    if machines:
        found = cluster_devices(found, machines)
    # The trainer needs the student here, whatever samples from it.
    here = [role for role in models if role == "student" or not engine_urls(config, role)]
    told = check_models({models[role]: _asked(config, role) for role in here}, devices=found)
    placement = _without_plan(config, project, models, devices=found)
    placement = replace(placement, machines=tuple(machines))
    is_lora = config.model.tuning == "lora"
    placement = _look_at_models(
        config,
        placement,
        told=told,
        may_download=may_download,
        trained="student",
        adapted="student" if is_lora else None,
    )
    if is_lora:
        _check_adapter_dtype(config, placement)
    if not may_download and not all(models[role].folder for role in here):
        return placement
    return replace(placement, plan=_plan(config, placement, devices=found))


def place_sampler(
    loaded: LoadedConfig,
    project: Path,
    *,
    role: EngineRole,
    model: ModelFiles,
    lora_rank: int | None,
    devices: Devices | None = None,
    machines: Sequence[Machine] = (),
) -> Placement:
    """Return where `model` is sampled from in the place of `role`: nothing else is to fit.

    `lora_rank`: of an adapter on it. Raises as `place_roles` does, which says what else is meant.
    """
    config = loaded.config
    found = devices or usable_gpus(find_devices())
    if machines:
        found = cluster_devices(found, machines)
    told: Mapping[ModelFiles, Weights] = {}
    if not engine_urls(config, role):
        told = check_models({model: _asked(config, role)}, devices=found)
    placement = _without_plan(config, project, {role: model}, devices=found)
    adapted = None if lora_rank is None else role
    placement = _look_at_models(config, placement, told=told, may_download=True, adapted=adapted)
    if lora_rank is not None:
        _check_adapter_dtype(config, placement)
    if placement.engines[role] == "url":
        return placement
    if placement.engines[role] == "vllm":
        placement = replace(placement, machines=tuple(machines))

    def alone(workload: Workload) -> Workload:
        return workload.sampling(role, lora_rank=lora_rank)

    return replace(placement, plan=_plan(config, placement, devices=found, change=alone))


def find_python(config: Config, project: Path) -> str | None:
    """Return engine.python: a file of the project's, else what the shell would take."""
    python = config.engine.python
    if python is None:
        return None
    for place in (project / Path(python).expanduser(), Path(python).expanduser()):
        if place.is_file():
            return str(place.absolute())
    return python


def engine_urls(config: Config, role: EngineRole) -> tuple[str, ...]:
    """Return the user's own servers for `role`."""
    settings = config.engine if role == "student" else config.teacher
    urls = None if settings is None else settings.url
    return (urls,) if isinstance(urls, str) else tuple(urls or ())


def _without_plan(
    config: Config, project: Path, models: Mapping[EngineRole, ModelFiles], *, devices: Devices
) -> Placement:
    engines: dict[EngineRole, EngineKind] = {}
    notices: list[str] = []
    python = find_python(config, project)
    for role in models:
        engines[role], line = _engine_kind(config, role, devices=devices, python=python)
        if line is not None and line not in notices:
            notices.append(line)
    return Placement(
        models=models,
        engines=engines,
        urls={role: engine_urls(config, role) for role in models},
        python=python,
        device="cuda" if devices.gpus else "cpu",
        plan=None,
        notices=tuple(notices),
    )


def _look_at_models(
    config: Config,
    placement: Placement,
    *,
    told: Mapping[ModelFiles, Weights],
    may_download: bool,
    trained: EngineRole | None = None,
    adapted: EngineRole | None = None,
) -> Placement:
    """Return `placement` with what is to be said of its models; refuse what cannot be run.

    `told`: what was seen of their weights. A model that is not on this machine is judged by its
    config.json, where it may be fetched.
    """
    notices = list(placement.notices)
    for role, model in placement.models.items():
        engine = placement.engines[role]
        if engine == "url" and role not in (trained, adapted):
            continue
        use = Use(
            window=config.rollout.max_context_window,
            engine=engine,
            device=placement.device,
            is_trained=role == trained,
            is_adapted=role == adapted,
            is_scored=trained is not None and role != trained,
        )
        try:
            own = _look_at(model, use, told.get(model, Weights()), fetch=may_download)
        except ModelError as error:
            text = str(error).removeprefix(f"{model.key}: ")  # of one that is not to be had
            raise ModelError(f"{model.path} cannot be used\n  {model.key}: {text}") from error
        notices += [line for line in own if line not in notices]
    unseen = (told[model].unseen for model in placement.models.values() if model in told)
    lines = dict.fromkeys(line for line in unseen if line is not None)
    return replace(placement, notices=tuple(notices), unseen=tuple(lines))


def _look_at(model: ModelFiles, use: Use, weights: Weights, *, fetch: bool) -> list[str]:
    if model.folder is None and not fetch:
        return []
    folder = model.folder or fetch_model(model, weights=False)
    is_quantized = check_quantization(
        folder, is_trained=use.is_trained, is_served=use.engine == "vllm"
    )
    told = [*weights.notices, *check_network(model.path, folder, use)]
    if weights.shapes and not is_quantized:
        from rnow.learner.fit import check_fit

        told += check_fit(folder, weights.shapes)
    if use.is_trained and use.is_adapted:
        from rnow.learner.reach import lora_reach

        told.append(lora_reach(folder).line())
    return told


def _of_machines(machines: Sequence[Machine]) -> str:
    return f" of one of the cluster's {len(machines)} machines" if machines else ""


def _asked(config: Config, role: EngineRole) -> str:
    own = None if role == "student" or config.teacher is None else config.teacher.engine
    return own or config.engine.kind


def _engine_kind(
    config: Config, role: EngineRole, *, devices: Devices, python: str | None
) -> tuple[EngineKind, str | None]:
    """Return what runs `role`, and a line where the user did not choose it."""
    asked = _asked(config, role)
    if engine_urls(config, role):
        return "url", None
    if asked == "local":
        return "local", None
    if asked == "vllm":
        if not _has_vllm(python):
            raise ConfigError(f"{_kind_key(config, role)} is vllm, but {_without_vllm(python)}")
        return "vllm", None
    if not any(gpu.kind == "cuda" for gpu in devices.gpus):
        reason = devices.reason or f"{devices.gpus[0].name} is no CUDA device"
        return "local", f"engine.kind auto: models run in this process, without vLLM ({reason})"
    if not _has_vllm(python):
        return "local", f"engine.kind auto: models run in this process; {_without_vllm(python)}"
    return "vllm", None


def _check_adapter_dtype(config: Config, placement: Placement) -> None:
    """Refuse what vLLM's server would die of, with an assertion that says nothing."""
    is_served = placement.engines.get("student") == "vllm" and placement.device == "cuda"
    if is_served and config.engine.dtype == "float32":
        raise ConfigError(
            "engine.dtype is float32, and vLLM on a GPU serves adapters in bfloat16 only; "
            "set engine.dtype to bfloat16, or engine.kind to local"
        )


def _kind_key(config: Config, role: EngineRole) -> str:
    own = role == "teacher" and config.teacher is not None and config.teacher.engine is not None
    return "teacher.engine" if own else "engine.kind"


def _without_vllm(python: str | None) -> str:
    return (
        f"{python or sys.executable} has no vLLM; make an environment for it "
        "(python -m venv vllm; vllm/bin/pip install vllm) and name vllm/bin/python as engine.python"
    )


def _has_vllm(python: str | None) -> bool:
    """Look for vLLM without importing it."""
    if python is None:
        return importlib.util.find_spec("vllm") is not None
    try:
        done = subprocess.run(
            [python, "-I", "-c", _LOOK], capture_output=True, timeout=_LOOK_DEADLINE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"engine.python is {python}, which cannot be run: {error}") from error
    return done.returncode == 0


def _plan(
    config: Config,
    placement: Placement,
    *,
    devices: Devices,
    change: Callable[[Workload], Workload] = lambda workload: workload,
) -> Plan | None:
    """Plan the GPUs for the workload that `change` makes of the project's.

    None where there are none, or where all is in this process and the model's memory is not known.
    """
    if not devices.gpus:
        return None
    is_served = "vllm" in placement.engines.values()
    if not is_served and any(gpu.memory_mib is None for gpu in devices.gpus):
        return None
    workload = load_workload(config, models=placement.models, engines=placement.engines)
    if not is_served and workload.unknown:
        return None
    plan = make_plan(change(workload), devices)
    check_trainer_is_here(plan)
    return plan
