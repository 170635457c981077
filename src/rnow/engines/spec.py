"""What it takes to open the engine of one role."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rnow.engines.vllm.command import VllmServerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One role's engine: servers to start, servers that are there, or a model in this process.

    EngineSpec(role="teacher", model=Path("models/teacher"), dtype="float32", device="cpu",
               request_timeout_s=600.0, tolerance=0.001)
    """

    role: Literal["student", "teacher"]
    model: Path  # folder of the weights to start with
    dtype: Literal["float32", "bfloat16"]
    device: str  # cuda | cpu: of a model in this process
    request_timeout_s: float
    tolerance: float  # nats a token between two answers of the same weights
    servers: tuple[VllmServerSettings, ...] = ()  # to start
    urls: tuple[str, ...] = ()  # of servers that somebody else started
    window: int | None = None  # tokens of the longest text
    untied: Path | None = None  # whole models go to servers in untied form, through this folder
