"""The numbers that each role's engine is opened with: config.yml and the device plan -> EngineSpec.

On GPUs a server's numbers are the plan's; on the CPU they are the settings' and vLLM's defaults.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rnow.config.load import LoadedConfig
from rnow.config.settings import Config, EngineSettings, TeacherSettings
from rnow.engines.spec import EngineSpec
from rnow.engines.vllm.command import VllmServerSettings
from rnow.engines.vllm.untied import needs_untying
from rnow.plan.make import device_variables
from rnow.plan.placing import EngineRole, Placement, engine_urls, find_python
from rnow.plan.records import Plan, Role

GROWING_MEMORY = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}

_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_UNTIED_START = "start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What the engines of one run, or of one evaluation, have in common."""

    config: Config
    placement: Placement
    python: str | None  # interpreter with vLLM
    logs: Path  # folder of student.log and teacher.log
    untied: Path  # folder for models in untied form
    environ: Mapping[str, str]  # that this process was started with

    @classmethod
    def here(
        cls, loaded: LoadedConfig, project: Path, *, placement: Placement, logs: Path, untied: Path
    ) -> "Serving":
        """Return what a project's engines have in common in this process as it is now."""
        return cls(
            config=loaded.config,
            placement=placement,
            python=find_python(loaded.config, project),
            logs=logs,
            untied=untied,
            environ=dict(os.environ),
        )


def sampling_spec(
    serving: Serving,
    role: EngineRole,
    model: Path,
    *,
    lora_rank: int | None,
    takes_models: bool = False,
) -> EngineSpec:
    """Return the engine that samples from `model`, in the place of `role`.

    `lora_rank`: of the adapters that it will be given; `takes_models`: whole models will follow.
    """
    spec = _bare_spec(serving, role, model)
    if serving.placement.engines[role] != "vllm":
        return spec
    untied = serving.untied if takes_models and needs_untying(model) else None
    servers = tuple(
        VllmServerSettings(
            model=model if untied is None else untied / _UNTIED_START,
            max_model_len=serving.config.rollout.max_context_window,
            max_lora_rank=lora_rank,
            **fields,
        )
        for fields in _server_fields(serving, role)
    )
    return replace(spec, servers=servers, untied=untied)


def scoring_spec(serving: Serving, model: Path) -> EngineSpec:
    """Return the teacher's engine, which scores whole trajectories and samples nothing."""
    spec = _bare_spec(serving, "teacher", model)
    if serving.placement.engines["teacher"] != "vllm":
        return spec
    window = serving.config.rollout.max_context_window
    servers = tuple(
        VllmServerSettings.for_teacher(max_context_window=window, model=model, **fields)
        for fields in _server_fields(serving, "teacher")
    )
    return replace(spec, servers=servers)


def trainer_environment(
    plan: Plan | None, environ: Mapping[str, str], *, role: Role = "trainer"
) -> dict[str, str]:
    """Return the variables under which torch finds the GPU of a plan's trainer as the first.

    And takes its memory in pieces that can grow, unless the user said otherwise: of pieces with
    fixed sizes, twice as much lies about unused, which the plan does not count.

    `role`: of what is in this process in the trainer's stead.
    """
    planned = None if plan is None else plan.role(role)
    if plan is None or planned is None or planned.server is not None:
        return {}
    variables = device_variables(planned.gpus, plan.gpus, environ=environ)
    is_cuda = plan.gpus[planned.gpus[0]].kind == "cuda"
    if is_cuda and not any(name in environ for name in _ALLOCATOR_VARIABLES):
        variables |= GROWING_MEMORY
    return variables


def _bare_spec(serving: Serving, role: EngineRole, model: Path) -> EngineSpec:
    """Return what holds whatever runs the role; without servers it is run in this process."""
    config, placement = serving.config, serving.placement
    dtype = _settings(config, role).dtype
    return EngineSpec(
        role=role,
        model=model,
        dtype=dtype,
        device=placement.device,
        request_timeout_s=config.engine.request_timeout_s,
        tolerance=role_tolerance(config, placement, role),
        urls=engine_urls(config, role),
        window=config.rollout.max_context_window,
    )


def _server_fields(serving: Serving, role: EngineRole) -> Iterator[dict[str, Any]]:
    """Yield, for each server of a role, the settings that do not depend on what it is for."""
    config, plan = serving.config, serving.placement.plan
    settings = _settings(config, role)
    dtype = settings.dtype
    if dtype == "auto":
        dtype = "float32" if serving.placement.device == "cpu" else "bfloat16"
    common: dict[str, Any] = {
        "role": role,
        "python": serving.python,
        "dtype": dtype,
        "args": settings.args,
        "start_timeout_s": config.engine.start_timeout_s,
    }
    if isinstance(settings, TeacherSettings):
        common["quantization"] = settings.quantization
    places = list(_places(plan, role, environ=serving.environ))
    for number, place in enumerate(places or [{}] * (settings.replicas or 1)):
        name = f"{role}-{number}.log" if number else f"{role}.log"
        yield {**common, **place, "log_file": serving.logs / name}


def _places(
    plan: Plan | None, role: EngineRole, *, environ: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Yield the GPUs and the numbers that a plan has for each server of a role."""
    planned = None if plan is None else plan.role(role)
    if plan is None or planned is None or planned.server is None:
        return
    server = planned.server
    for gpus in planned.replica_gpus:
        yield {
            "devices": device_variables(gpus, plan.gpus, environ=environ),
            "tensor_parallel_size": server.tensor_parallel_size,
            "gpu_memory_utilization": server.gpu_memory_utilization,
            "max_num_batched_tokens": server.max_num_batched_tokens,
            "max_num_seqs": server.max_num_seqs,
        }


def _settings(config: Config, role: EngineRole) -> EngineSettings | TeacherSettings:
    if role == "student":
        return config.engine
    assert config.teacher is not None, "distill has a teacher; the config was checked"
    return config.teacher


def adapter_rank(adapter: Path) -> int:
    """Return the rank of the adapter in a folder."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return int(config["r"])


def role_tolerance(config: Config, placement: Placement, role: EngineRole) -> float:
    """Return how many nats a token two answers of one role's engine may be apart."""
    dtype = _settings(config, role).dtype
    # What format a server of the user's own has, nothing says.
    unknown = placement.engines[role] == "url" and dtype == "auto"
    return dtype_tolerance("bfloat16" if unknown else dtype, device=placement.device)


def dtype_tolerance(*dtypes: str, device: str) -> float:
    """Return how many nats a token views of the same weights may be apart, each in its dtype."""
    exact = ("float32", "auto") if device == "cpu" else ("float32",)
    # bfloat16 has a spacing of 0.125 around a logit of 20, and a text has improbable tokens: the
    # trainer and a vLLM that sampled alike were 0.051 apart on one.
    return 0.001 if all(dtype in exact for dtype in dtypes) else 0.1
