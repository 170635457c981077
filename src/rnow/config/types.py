"""What every section of config.yml is, and the types of settings that have a rule of their own."""

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """A part of config.yml: unknown keys, NaN, infinity are errors; it does not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Hostnames = TypeVar("Hostnames", bound=Collection[str])  # a list, or the keys of a mapping
DatasetType = Literal["distill", "rl", "sft", "midtrain"]
Dtype = Literal["auto", "bfloat16", "float32"]
ReasoningMode = Literal["disabled", "none", "minimal", "low", "medium", "high", "xhigh"]

DEFAULT_ROLLOUT_TIMEOUT_S = 3600.0
FULL_LEARNING_RATE = 1e-5


def _refuse_zero_save_step(save_step: int) -> int:
    if save_step == 0:
        raise ValueError(
            "save_step cannot be 0. Use -1 to save only at the end, "
            "or a positive number for periodic saves."
        )
    return save_step


def _check_urls(urls: str | list[str]) -> str | list[str]:
    given = [urls] if isinstance(urls, str) else urls
    if not given:
        raise ValueError("the list is empty; name a server, or write null")
    for url in given:
        if not re.fullmatch(r"https?://[\w.-]+(:\d{1,5})?/?|unix:/\S+", url):
            raise ValueError(f"{url} is not the address of a server, as http://127.0.0.1:8000")
    return urls


def _null_to_default_rollout_timeout(value: object) -> object:
    # A rollout without any limit could hold up a step for ever, so null means the default here.
    return DEFAULT_ROLLOUT_TIMEOUT_S if value is None else value


def _check_hosts(hosts: Hostnames) -> Hostnames:
    for host in hosts:
        if host != "*" and not re.fullmatch(r"(\*\.)?[\w-]+(\.[\w-]+)*", host):
            raise ValueError(f"{host} is not a host name: write it without scheme, port and path")
    return hosts


def _check_environment_names(names: list[str]) -> list[str]:
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"{name} is not the name of an environment variable")
    return names


EngineKind = Literal["auto", "vllm", "local"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]  # each is the package that it needs
SaveStep = Annotated[int, AfterValidator(_refuse_zero_save_step)]
Urls = Annotated[str | list[str], AfterValidator(_check_urls)]
RolloutTimeout = Annotated[float, BeforeValidator(_null_to_default_rollout_timeout)]
Hosts = Annotated[list[str], AfterValidator(_check_hosts)]
Sites = Annotated[dict[str, str], AfterValidator(_check_hosts)]
EnvironmentNames = Annotated[list[str], AfterValidator(_check_environment_names)]


def fill_learning_rate(written: Any) -> Any:
    """Give full fine-tuning, of which nothing else is said, a tenth of an adapter's rate."""
    match written:
        case {"model": {"tuning": "full"}, "trainer": {**trainer}} if (
            "learning_rate" not in trainer
        ):
            return {**written, "trainer": {**trainer, "learning_rate": FULL_LEARNING_RATE}}
    return written
