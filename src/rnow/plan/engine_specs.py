"""The numbers that each role's engine is opened with: config.yml and the device plan -> EngineSpec.

On GPUs a server's numbers are the plan's; on the CPU they are the settings' and vLLM's defaults.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rnow.config.load import teacher_of
from rnow.config.settings import Config, EngineSettings, TeacherSettings
from rnow.engines.spec import EngineSpec
from rnow.engines.vllm.command import TEACHER_TOKENS_A_STEP, VllmServerSettings
from rnow.engines.vllm.untied import needs_untying
from rnow.errors import ConfigError
from rnow.plan.make import device_variables
from rnow.plan.nodes import deal_places, server_place
from rnow.plan.placing import EngineRole, Placement, engine_urls
from rnow.plan.records import Plan, Role
from rnow.plan.weight_files import linear_names
from rnow.plan.workload import num_ranks

GROWING_MEMORY = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}

_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_UNTIED_START = "start"
# Layers that transformers and vLLM call alike, in one matrix or in vLLM's several of one.
_NAMED_ALIKE = frozenset(
    f"{name}_proj" for name in ("q", "k", "v", "o", "qkv", "gate", "up", "gate_up", "down")
)
_FEWEST_REQUESTS, _MOST_REQUESTS = 8, 256  # of one server at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What the engines of one run, or of one evaluation, have in common."""

    config: Config
    placement: Placement
    logs: Path  # folder of student.log and teacher.log
    untied: Path  # folder for models in untied form
    # that this process was started with
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


def sampling_spec(
    serving: Serving,
    role: EngineRole,
    model: Path,
    *,
    lora_rank: int | None,
    is_trained: bool = False,
    takes_models: bool = False,
    is_made_here: bool = False,
    num_rollouts: int | None = None,
) -> EngineSpec:
    """Return the engine that samples from `model`, in the place of `role`.

    `lora_rank`: of the adapters that it will be given; `is_trained`: these are rnow's own;
    `takes_models`: whole models will follow; `is_made_here`: other machines of a cluster do not
    have `model`; `num_rollouts`: that run at the same time, None: nobody knows.
    """
    if serving.placement.engines[role] != "vllm":
        return _spec(serving, role, model)
    untied = serving.untied if takes_models and needs_untying(model) else None
    servers = _servers(
        serving,
        role,
        model=model if untied is None else untied / _UNTIED_START,
        max_model_len=serving.config.rollout.max_context_window,
        max_lora_rank=lora_rank,
        lora_targets=adapted_layers(model) if is_trained and lora_rank is not None else (),
        is_made_here=is_made_here or untied is not None,
    )
    if num_rollouts is not None:
        num = _requests_at_once(num_rollouts, num_servers=len(servers))
        servers = tuple(replace(server, max_num_seqs=num) for server in servers)
    return _spec(serving, role, model, servers=servers, untied=untied)


def adapted_layers(model: Path) -> tuple[str, ...]:
    """Return the layers of an adapter that is trained on `model`, as a vLLM server knows them.

    (): it may know one of them by another name, and would leave that one out without a word.
    """
    names = linear_names(model)
    return tuple(sorted(names)) if names <= _NAMED_ALIKE else ()


def _requests_at_once(num_rollouts: int, *, num_servers: int) -> int:
    """Return --max-num-seqs: twice a server's share, since it takes graphs and memory for each."""
    return max(_FEWEST_REQUESTS, min(2 * num_rollouts // num_servers, _MOST_REQUESTS))


def scoring_spec(serving: Serving, model: Path) -> EngineSpec:
    """Return the teacher's engine, which scores whole trajectories and samples nothing.

    One token of context more than the longest trajectory: a request has to sample one. No prefix
    cache: scoring does not read it, and answers could depend on the order of requests. A cap on
    tokens scored at once: what a prompt's log-probabilities take is outside of vLLM's own
    accounting and ends the server.
    """
    if serving.placement.engines["teacher"] != "vllm":
        return _spec(serving, "teacher", model)
    servers = _servers(
        serving,
        "teacher",
        model=model,
        max_model_len=serving.config.rollout.max_context_window + 1,
        max_num_batched_tokens=TEACHER_TOKENS_A_STEP,
        prefix_caching=False,
        captures_graphs=False,
    )
    return _spec(serving, "teacher", model, servers=servers)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """One process of a trainer that has several."""

    environment: Mapping[str, str]  # beside that of where it is
    node: str | None = None  # machine of a cluster; None: this one


def rank_specs(serving: Serving) -> tuple[RankSpec, ...]:
    """Return each process of the trainer; () where it is this process alone.

    All are on this machine, or all have a node: who speaks to another machine is spoken to there.
    """
    config, placement = serving.config, serving.placement
    num, plan = num_ranks(config), placement.plan
    if num == 1:
        return ()
    if placement.device == "cpu":
        before = sum(
            _settings(config, role).replicas or 1
            for role, kind in placement.engines.items()
            if kind == "vllm"
        )
        dealt = deal_places(placement.machines, num, before=before)
        return tuple(RankSpec(environment={}, **place) for place in dealt)
    planned = None if plan is None else plan.role("trainer")
    if plan is None or planned is None:
        raise ConfigError(
            f"trainer.num_ranks is {num}, and without the figures of both models no GPU can be "
            "given to a rank; leave it out"
        )
    if not any(plan.gpus[gpu].node for gpu in planned.gpus):
        return tuple(
            RankSpec(environment=device_variables([gpu], plan.gpus, environ=serving.environ))
            for gpu in planned.gpus
        )
    growing = GROWING_MEMORY if plan.gpus[planned.gpus[0]].kind == "cuda" else {}
    places = (
        server_place([gpu], plan, placement.machines, environ=serving.environ)
        for gpu in planned.gpus
    )
    return tuple(
        RankSpec(environment={**growing, **place["devices"]}, node=place["node"])
        for place in places
    )


def _spec(serving: Serving, role: EngineRole, model: Path, **servers: Any) -> EngineSpec:
    """Return a role's engine; without `servers` its model is run in this process, or elsewhere."""
    config, placement = serving.config, serving.placement
    return EngineSpec(
        role=role,
        model=model,
        dtype=_dtype(serving, role),
        device=placement.device,
        request_timeout_s=config.engine.request_timeout_s,
        tolerance=role_tolerance(config, placement, role),
        urls=engine_urls(config, role),
        window=config.rollout.max_context_window,
        **servers,
    )


def _servers(serving: Serving, role: EngineRole, **of_use: Any) -> tuple[VllmServerSettings, ...]:
    """Return the settings of each server of a role; `of_use` are those of what it is for."""
    settings, plan = _settings(serving.config, role), serving.placement.plan
    if isinstance(settings, TeacherSettings):
        of_use["quantization"] = settings.quantization
    before = (serving.config.engine.replicas or 1) if role == "teacher" else 0
    places = deal_places(serving.placement.machines, settings.replicas or 1, before=before)
    planned = None if plan is None else plan.role(role)
    if plan is not None and planned is not None and (server := planned.server) is not None:
        of_use |= {
            "tensor_parallel_size": server.tensor_parallel_size,
            "gpu_memory_utilization": server.gpu_memory_utilization,
            "max_num_batched_tokens": server.load.max_num_batched_tokens,
            "max_num_seqs": server.load.max_num_seqs,
        }
        places = [
            server_place(gpus, plan, serving.placement.machines, environ=serving.environ)
            for gpus in planned.replica_gpus
        ]
    return tuple(
        VllmServerSettings(
            role=role,
            python=serving.placement.python,
            dtype=_dtype(serving, role),
            args=settings.args,
            deterministic=serving.config.engine.deterministic,
            start_timeout_s=serving.config.engine.start_timeout_s,
            log_file=serving.logs / (f"{role}-{number}.log" if number else f"{role}.log"),
            **of_use,
            **place,
        )
        for number, place in enumerate(places)
    )


def _dtype(serving: Serving, role: EngineRole) -> Literal["float32", "bfloat16"]:
    dtype = _settings(serving.config, role).dtype
    if dtype == "auto":
        return "float32" if serving.placement.device == "cpu" else "bfloat16"
    return dtype


def _settings(config: Config, role: EngineRole) -> EngineSettings | TeacherSettings:
    return config.engine if role == "student" else teacher_of(config)


def adapter_rank(adapter: Path) -> int:
    """Return the rank of the adapter in a folder."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return int(config["r"])


def adapter_dtype(serving: Serving) -> Literal["bfloat16"] | None:
    """Return the format to which the student's engine rounds an adapter that it loads; None: none
    that is known."""
    is_ours = serving.placement.engines["student"] == "vllm"
    return "bfloat16" if is_ours and _dtype(serving, "student") == "bfloat16" else None


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
