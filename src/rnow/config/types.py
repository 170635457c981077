"""Types of settings that have a rule of their own."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator

__all__ = [
    "DEFAULT_ROLLOUT_TIMEOUT_S",
    "DatasetType",
    "Dtype",
    "EngineKind",
    "EnvironmentNames",
    "Gpus",
    "Hosts",
    "ReasoningMode",
    "RolloutTimeout",
    "SaveStep",
    "Sites",
    "TeacherEngine",
]

DatasetType = Literal["distill", "rl", "sft", "midtrain"]
Dtype = Literal["auto", "bfloat16", "float32"]
ReasoningMode = Literal["disabled", "none", "minimal", "low", "medium", "high", "xhigh"]

DEFAULT_ROLLOUT_TIMEOUT_S = 3600.0


def _refuse_unbuilt_engine(kind: str | None) -> str | None:
    if kind == "vllm":
        raise ValueError("vLLM is not built yet in this version, use local")
    return kind


def _refuse_zero_save_step(save_step: int) -> int:
    if save_step == 0:
        raise ValueError(
            "save_step cannot be 0. Use -1 to save only at the end, "
            "or a positive number for periodic saves."
        )
    return save_step


def _refuse_several_gpus(gpus: int) -> int:
    if gpus > 1:
        raise ValueError("several GPUs a role are not built yet in this version, use 1")
    return gpus


def _null_to_default_rollout_timeout(value: object) -> object:
    # A rollout without any limit could hold up a step for ever, so null means the default here.
    return DEFAULT_ROLLOUT_TIMEOUT_S if value is None else value


def _check_hosts(hosts: list[str]) -> list[str]:
    for host in hosts:
        if host != "*" and not re.fullmatch(r"(\*\.)?[\w-]+(\.[\w-]+)*", host):
            raise ValueError(f"{host} is not a host name: write it without scheme, port and path")
    return hosts


def _check_site_hosts(sites: dict[str, str]) -> dict[str, str]:
    _check_hosts(list(sites))
    return sites


def _check_environment_names(names: list[str]) -> list[str]:
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"{name} is not the name of an environment variable")
    return names


EngineKind = Annotated[Literal["auto", "local", "vllm"], AfterValidator(_refuse_unbuilt_engine)]
TeacherEngine = Annotated[Literal["local", "vllm"] | None, AfterValidator(_refuse_unbuilt_engine)]
SaveStep = Annotated[int, AfterValidator(_refuse_zero_save_step)]
Gpus = Annotated[int, AfterValidator(_refuse_several_gpus)]
RolloutTimeout = Annotated[float, BeforeValidator(_null_to_default_rollout_timeout)]
Hosts = Annotated[list[str], AfterValidator(_check_hosts)]
Sites = Annotated[dict[str, str], AfterValidator(_check_site_hosts)]
EnvironmentNames = Annotated[list[str], AfterValidator(_check_environment_names)]
