"""How a vLLM server is started: its command line and environment, from a narrow record.

`python -m vllm.entrypoints.openai.api_server` and not `vllm serve`: the builds for CPU lack the
latter. The server runs in an environment of its own; nothing of vLLM is imported here.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnow.errors import ConfigError

# vLLM computes prompt log-probabilities over [tokens of one scheduler step, vocabulary], outside of
# what it counts as its memory: 7.5 GiB at 8192 × 152k, 1.9 GiB at 2048.
TEACHER_TOKENS_A_STEP = 2048
_MIN_CPU_BATCHED_TOKENS = 4096
NUM_ADAPTERS_AT_ONCE = 2  # versions in one batch: the one being left and the one begun
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for
_NUM_ADAPTERS_KEPT = 4  # in memory; others are read from their folders again when asked for
_OURS = ("model", "host", "port", "uds", "served_model_name", "enable_scale_out")
# What torchrun tells the processes that it starts; a server is none of them.
_RANKS = re.compile(
    r"RANK|WORLD_SIZE|MASTER_(ADDR|PORT)|(LOCAL|GROUP|ROLE)_(RANK|WORLD_SIZE|NAME)|TORCHELASTIC_.*"
)
_NOT_FOR_SERVERS = re.compile(rf"VLLM_API_KEY|VLLM_DP_.*|{_RANKS.pattern}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmServerSettings:
    """One server, for one role.

    VllmServerSettings(role="student", model=Path("models/student"), log_file=Path("student.log"),
                       max_model_len=4096, dtype="float32", deterministic=False,
                       start_timeout_s=900.0, max_lora_rank=32)
    """

    role: str  # "student", "teacher": names it in messages
    model: Path  # a model folder
    log_file: Path  # appended to
    max_model_len: int  # tokens of prompt and completion together
    dtype: str  # float32, bfloat16, float16; auto: what the model's config says
    deterministic: bool  # what a request gets does not depend on others beside it
    start_timeout_s: float  # until it has answered a first request
    python: str | None = None  # interpreter of the environment that has vLLM; None: this one
    # variables that show it its GPUs and no others; none: CPU
    devices: Mapping[str, str] = field(default_factory=dict)
    quantization: str | None = None  # as --quantization, "fp8"
    tensor_parallel_size: int = 1
    # share of each device's memory that vLLM takes; None: vLLM's choice
    gpu_memory_utilization: float | None = None
    max_lora_rank: int | None = None  # None: adapters cannot be loaded
    lora_targets: tuple[str, ...] = ()  # layers that adapters have, "q_proj"; (): any, and the head
    prefix_caching: bool = True
    max_num_batched_tokens: int | None = None  # tokens of one scheduler step; None: vLLM's choice
    max_num_seqs: int | None = None  # requests that run at the same time; None: vLLM's choice
    captures_graphs: bool = True  # False: it only scores, and decodes nothing that is worth them
    args: Mapping[str, Any] = field(default_factory=dict)  # further flags, these win
    node: str | None = None  # machine of a cluster; None: this one
    is_made_here: bool = False  # the model's folder, which other machines are to be given


def command(settings: VllmServerSettings, *, socket: Path) -> list[str]:
    """Return the command line of a server that listens on the unix socket `socket`."""
    flags: dict[str, Any] = {
        "model": str(settings.model.absolute()),
        "served-model-name": served_name(settings, socket),
        "uds": str(socket),
        "dtype": settings.dtype,
        "max-model-len": settings.max_model_len,
        "tensor-parallel-size": settings.tensor_parallel_size,
        "enable-scale-out": True,  # without it the token route answers 403
        "generation-config": "vllm",  # sampling is what a request says
        "enable-prefix-caching": settings.prefix_caching,
        "enforce-eager": not settings.devices,
        "disable-uvicorn-access-log": True,
    }
    if settings.dtype != "float32":
        # A logit of 20 is rounded to 0.125 in bfloat16, and the trainer does not round.
        flags["hf-overrides"] = {"head_dtype": "float32"}
    if settings.devices:
        if settings.gpu_memory_utilization is not None:
            flags["gpu-memory-utilization"] = settings.gpu_memory_utilization
        if not settings.captures_graphs:
            flags["compilation-config"] = {"cudagraph_mode": "NONE"}
    elif settings.max_num_batched_tokens is None:
        # In parts, prompts of requests with a seed end vLLM on a CPU, whose generators have no
        # offset to set back.
        flags["enable-chunked-prefill"] = False
        flags["max-num-batched-tokens"] = max(settings.max_model_len, _MIN_CPU_BATCHED_TOKENS)
    if settings.max_lora_rank is not None:
        flags["enable-lora"] = True
        flags["max-lora-rank"] = _allowed_rank(settings.max_lora_rank)
        flags["max-loras"] = NUM_ADAPTERS_AT_ONCE
        flags["max-cpu-loras"] = _NUM_ADAPTERS_KEPT
        if settings.lora_targets:
            # Else the LM head is wrapped too, for an adapter of zeros: the build for CPUs ends when
            # it scores several texts so, and vocabularies above 258,048 are refused.
            flags["lora-target-modules"] = settings.lora_targets
    if settings.quantization is not None:
        flags["quantization"] = settings.quantization
    if settings.max_num_batched_tokens is not None:
        flags["max-num-batched-tokens"] = settings.max_num_batched_tokens
    if settings.max_num_seqs is not None:
        flags["max-num-seqs"] = settings.max_num_seqs
    if settings.deterministic and not settings.devices:
        # The build for CPUs has no batch-invariant kernels, but one request at a time has no
        # neighbours; a prompt whose beginning is in the cache is computed in other pieces.
        flags |= {"max-num-seqs": 1, "enable-prefix-caching": False}
    flags |= _of_user(settings.args, flags)
    python = settings.python or sys.executable
    words = [word for name, value in flags.items() for word in _flag(name, value)]
    return [python, "-m", "vllm.entrypoints.openai.api_server", *words]


def served_name(settings: VllmServerSettings, socket: Path) -> str:
    """Return the base model's name: another run's server would not know it."""
    return f"rnow-{settings.role}-{socket.parent.name.removeprefix('rnow-')}"


def environment(
    settings: VllmServerSettings, environ: Mapping[str, str], *, socket: Path
) -> dict[str, str]:
    """Return the server's environment: the user's, with what vLLM needs and without what harms."""
    kept = {k: v for k, v in environ.items() if not _NOT_FOR_SERVERS.fullmatch(k)}
    if settings.python is not None:  # modules of this environment must not shadow the other's
        kept = {k: v for k, v in kept.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    tunable = {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        # Of use for top-k and top-p alone, and compiled at the start by an nvcc that few have.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    if settings.devices:
        devices = dict(settings.devices)
        if settings.deterministic:
            devices["VLLM_BATCH_INVARIANT"] = "1"
    else:
        devices = {"CUDA_VISIBLE_DEVICES": ""}
        tunable |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
            # vLLM's choice puts the workers of all servers on the same first core.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Two small functions of the sampler would be compiled at the first request, which
            # takes 10 s to minutes, and --enforce-eager does not reach them.
            "TORCHDYNAMO_DISABLE": "1",
        }
    needed = {
        "VLLM_SERVER_DEV_MODE": "1",  # routes that replace weights
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_RPC_BASE_PATH": str(socket.parent),  # pickles are read from the sockets there
        "PYTHONSAFEPATH": "1",  # a project's tools.py must not stand before vLLM's modules
    }
    return {**tunable, **kept, **devices, **needed}


def _of_user(args: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's flags; where one is a table, ours stays beneath it."""
    flags = {_checked_name(name): value for name, value in args.items()}
    return {
        name: {**ours[name], **value}
        if isinstance(value, dict) and isinstance(ours.get(name), dict)
        else value
        for name, value in flags.items()
    }


def _checked_name(name: str) -> str:
    if name.replace("-", "_").startswith("trust_remote_code"):
        raise ConfigError(f"engine.args.{name}: rnow never runs a model folder's code; remove it")
    if name.replace("-", "_") in _OURS:
        raise ConfigError(f"engine.args.{name} is set by rnow itself; remove it")
    return name.replace("_", "-")


def _flag(name: str, value: Any) -> list[str]:
    match value:
        case None:
            return []
        case bool():
            return [f"--{name}" if value else f"--no-{name}"]
        case dict() | list():
            return [f"--{name}", json.dumps(value)]
        case tuple():
            return [f"--{name}", *value]
    return [f"--{name}", str(value)]


def _allowed_rank(rank: int) -> int:
    """Return the smallest rank that vLLM has room for by its own list."""
    fitting = [size for size in ADAPTER_RANKS if size >= rank]
    if not fitting:
        raise ConfigError(
            f"model.qlora_rank is {rank}; vLLM serves adapters up to {ADAPTER_RANKS[-1]}"
        )
    return fitting[0]
