"""Which GPUs this process may use, and whether the models of a project can run on this machine.

Found out in milliseconds and without torch: from nvidia-smi, else the NVIDIA driver's files, and
the files of AMD's driver. The one thing started is nvidia-smi, under a deadline. Apple's GPUs are
not counted: no part of rnow runs on them.
"""

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rnow.errors import ModelError
from rnow.plan.hosted_models import why_without_weights
from rnow.plan.model_files import ModelFiles
from rnow.plan.own_code import own_code_of
from rnow.plan.weight_files import Weights, check_weights

NVIDIA_SMI_DEADLINE_S = 10.0
MAX_CPU_WEIGHT_BYTES = 4 * 10**9  # above it, one step takes hours on a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU. Gpu(kind="cuda", name="NVIDIA H200", memory_mib=143771)"""

    kind: Literal["cuda", "rocm"]
    name: str
    memory_mib: int | None  # all of it, used or not; None: unknown
    node: int = 0  # machine that it is in; 0: this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """The GPUs that this process may use, and why if there are none."""

    gpus: tuple[Gpu, ...]
    reason: str  # "no nvidia-smi, no NVIDIA driver, no ROCm"; "" where there are GPUs


@dataclass(frozen=True, slots=True)
class _Found:
    index: str
    uuid: str
    gpu: Gpu


def find_devices(
    environ: Mapping[str, str] = os.environ,
    *,
    root: Path = Path("/"),
    deadline_s: float = NVIDIA_SMI_DEADLINE_S,
) -> Devices:
    """Return the GPUs that this process may use. `root` holds dev, proc and sys."""
    nvidia = _ask_nvidia_smi(environ, deadline_s) or _read_nvidia_driver(root)
    gpus: list[Gpu] = []
    hidden: list[str] = []
    for maker, found, variables in (
        ("NVIDIA", nvidia, ["CUDA_VISIBLE_DEVICES"]),
        ("AMD", _amd_gpus(root), ["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"]),
    ):
        variable = next((name for name in variables if name in environ), None)
        visible = found if variable is None else _visible(found, environ[variable])
        gpus += [item.gpu for item in visible]
        if found and not visible:
            hidden.append(f"{variable}={environ[variable or '']!r} hides {len(found)} {maker} GPUs")
    none = ", ".join(hidden) or "no nvidia-smi, no NVIDIA driver, no ROCm"
    return Devices(gpus=tuple(gpus), reason="" if gpus else none)


def usable_gpus(devices: Devices, *, torch_version: str | None = None) -> Devices:
    """Return `devices`, or none of them with the reason where torch cannot use a GPU.

    `torch_version` None: the installed one.
    """
    version = torch_version or metadata.version("torch")
    if devices.gpus and version.endswith("+cpu"):
        reason = f"there is {devices.gpus[0].name}, but torch {version} cannot use it"
        return Devices(gpus=(), reason=reason)
    return devices


def check_models(
    models: Mapping[ModelFiles, str], *, devices: Devices
) -> dict[ModelFiles, Weights]:
    """Raise ModelError with all that is missing to run `models`, each with its engine.kind.

    Without a GPU, `auto` takes models that are on this machine and small, and downloads nothing;
    the other kinds take what they are given. Returns what was seen of each one's weights.
    """
    told: dict[ModelFiles, Weights] = {}
    broken: list[tuple[ModelFiles, str]] = []
    for model in models:
        try:
            told[model] = _look_at(model)
        except ModelError as error:
            broken.append((model, str(error)))
    too_big = [
        (model, text)
        for model, kind in models.items()
        if kind == "auto" and not devices.gpus and model in told and (text := _needs_gpu(model))
    ]
    if not broken and not too_big:
        return told
    lines = [f"  {model.key}: {text}" for model, text in broken + too_big]
    if not too_big:
        raise ModelError("\n".join([f"{_names(broken)} cannot be loaded", *lines]))
    needs = "need GPUs" if len({model.path for model, _ in too_big}) > 1 else "needs a GPU"
    found = f"and none was found here ({devices.reason})"
    lines.insert(0, f"{_names(too_big)} {needs}, {found}")
    lines.append("To see the same loop on this machine's CPU: rnow demo")
    lines.append("To try anyway: engine.kind=local")
    raise ModelError("\n".join(lines))


def _names(items: Sequence[tuple[ModelFiles, str]]) -> str:
    return " and ".join(dict.fromkeys(model.path for model, _ in items))


def _look_at(model: ModelFiles) -> Weights:
    """Raise ModelError for a model that can be loaded nowhere."""
    if model.folder is None:
        why = why_without_weights(model.path) or model.why_not_downloaded
    else:
        why = own_code_of(model.folder)
    if why is not None:
        raise ModelError(why)
    return Weights() if model.folder is None else check_weights(model.folder)


def _needs_gpu(model: ModelFiles) -> str | None:
    """Say why `model` cannot be loaded without a GPU."""
    if model.folder is None and model.why_not_downloaded is None:
        from huggingface_hub.constants import HF_HUB_CACHE

        return (
            f"{model.path} is neither a folder nor in the Hugging Face cache "
            f"({HF_HUB_CACHE}), and without a GPU nothing is downloaded"
        )
    if (model.weight_bytes or 0) > MAX_CPU_WEIGHT_BYTES:
        size, most = (model.weight_bytes or 0) / 1e9, MAX_CPU_WEIGHT_BYTES / 1e9
        return f"{model.path} has {size:.1f} GB of weights; up to {most:g} GB run on a CPU"
    return None


def _visible(found: Sequence[_Found], setting: str) -> list[_Found]:
    """Apply CUDA_VISIBLE_DEVICES: what stands after an entry that names no GPU does not count."""
    visible: list[_Found] = []
    for entry in (part.strip() for part in setting.split(",")):
        if found and entry.startswith("MIG-"):
            visible.append(_Found(entry, entry, Gpu(kind="cuda", name=entry, memory_mib=None)))
            continue
        match = [item for item in found if entry and _is_named(item, entry)]
        if not match:
            break
        visible += match
    return visible


def _is_named(item: _Found, entry: str) -> bool:
    return entry == item.index or (entry.startswith("GPU-") and item.uuid.startswith(entry))


def _ask_nvidia_smi(environ: Mapping[str, str], deadline_s: float) -> list[_Found]:
    program = shutil.which("nvidia-smi", path=environ.get("PATH", os.defpath))
    if program is None:
        return []
    query = [program, "--query-gpu=index,uuid,memory.total,name", "--format=csv,noheader,nounits"]
    return [
        _Found(index, uuid, Gpu(kind="cuda", name=name, memory_mib=_number(memory)))
        for index, uuid, memory, name in smi_rows(_output(query, deadline_s), num_columns=4)
    ]


def smi_rows(lines: Iterable[str], *, num_columns: int) -> list[list[str]]:
    """Return what nvidia-smi's lines say of each GPU; the last column may have commas."""
    rows = ([part.strip() for part in line.split(",", num_columns - 1)] for line in lines)
    return [row for row in rows if len(row) == num_columns]


def _output(command: Sequence[str], deadline_s: float) -> list[str]:
    """Return the lines that `command` prints, none if it fails or is not done in time."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except OSError:
        return []
    try:
        text, _ = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        # A wedged driver keeps nvidia-smi in the kernel, where no signal reaches it: waiting for
        # its end, as subprocess.run does, could take for ever.
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        if process.stdout:
            process.stdout.close()
        return []
    return text.splitlines() if process.returncode == 0 else []


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None  # nvidia-smi writes [N/A] for shared memory


def _read_nvidia_driver(root: Path) -> list[_Found]:
    files = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    found = []
    for index, file in enumerate(files):
        facts = _facts(file, ":")
        gpu = Gpu(kind="cuda", name=facts.get("Model", "NVIDIA GPU"), memory_mib=None)
        found.append(_Found(str(index), facts.get("GPU UUID", ""), gpu))
    return found or [
        _Found(str(index), "", Gpu(kind="cuda", name="NVIDIA GPU", memory_mib=None))
        for index, _ in enumerate(sorted((root / "dev").glob("nvidia[0-9]*")))
    ]


def _amd_gpus(root: Path) -> list[_Found]:
    """Return the compute nodes of AMD's driver that have shader units; the others are CPUs."""
    if not (root / "dev/kfd").exists():
        return []
    found: list[_Found] = []
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties")
    for file in sorted(nodes, key=lambda file: (len(file.parent.name), file.parent.name)):
        facts = _facts(file, " ")
        if facts.get("simd_count", "0") != "0":
            banks = [_facts(bank, " ") for bank in file.parent.glob("mem_banks/*/properties")]
            # Heap types 1 and 2 are the GPU's own memory.
            sizes = [
                int(bank["size_in_bytes"]) for bank in banks if bank.get("heap_type") in ("1", "2")
            ]
            name = f"AMD GPU gfx{facts.get('gfx_target_version', '')}"
            gpu = Gpu(kind="rocm", name=name, memory_mib=sum(sizes) >> 20 if sizes else None)
            found.append(_Found(str(len(found)), "", gpu))
    return found


def _facts(file: Path, separator: str) -> dict[str, str]:
    """Return the `name<separator>value` lines of one of the kernel's files."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(separator) for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
