import json
import time
from pathlib import Path

import pytest
from builders import write_hollow_model
from huggingface_hub.constants import HF_HUB_CACHE

from rnow.errors import ModelError
from rnow.plan.devices import Devices, Gpu, check_models, find_devices, usable_gpus
from rnow.plan.model_files import ModelFiles, find_model

H200 = Gpu(kind="cuda", name="NVIDIA H200", memory_mib=143771)
L4 = Gpu(kind="cuda", name="NVIDIA L4", memory_mib=23034)
NO_GPU = Devices(gpus=(), reason="no nvidia-smi, no NVIDIA driver, no ROCm")
ONE_GPU = Devices(gpus=(H200,), reason="")

TWO_CARDS = """
echo "0, GPU-aaa1, 143771, NVIDIA H200"
echo "1, GPU-bbb2, 23034, NVIDIA L4"
"""


def write_nvidia_smi(folder: Path, script: str) -> dict[str, str]:
    """Return an environment whose PATH holds an nvidia-smi that runs `script`."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)
    return {"PATH": str(folder)}


def model(path: str, *, folder: Path | None = None, weight_bytes: int | None = None) -> ModelFiles:
    return ModelFiles(key="model.path", path=path, folder=folder, weight_bytes=weight_bytes)


def test_a_machine_without_gpu_says_where_it_looked(tmp_path: Path) -> None:
    assert find_devices({"PATH": str(tmp_path)}, root=tmp_path) == NO_GPU


def test_gpus_are_what_nvidia_smi_lists(tmp_path: Path) -> None:
    environ = write_nvidia_smi(tmp_path, TWO_CARDS)
    assert find_devices(environ, root=tmp_path) == Devices(gpus=(H200, L4), reason="")


@pytest.mark.parametrize(
    ("setting", "gpus"),
    [
        ("1", (L4,)),
        ("1,0", (L4, H200)),
        ("GPU-bbb", (L4,)),
        ("0,7,1", (H200,)),
        ("MIG-ccc", (Gpu(kind="cuda", name="MIG-ccc", memory_mib=None),)),
    ],
)
def test_cuda_visible_devices_chooses(tmp_path: Path, setting: str, gpus: tuple[Gpu, ...]) -> None:
    environ = write_nvidia_smi(tmp_path, TWO_CARDS) | {"CUDA_VISIBLE_DEVICES": setting}
    assert find_devices(environ, root=tmp_path) == Devices(gpus=gpus, reason="")


@pytest.mark.parametrize("setting", ["", "-1"])
def test_cuda_visible_devices_can_hide_all(tmp_path: Path, setting: str) -> None:
    environ = write_nvidia_smi(tmp_path, TWO_CARDS) | {"CUDA_VISIBLE_DEVICES": setting}
    assert find_devices(environ, root=tmp_path) == Devices(
        gpus=(), reason=f"CUDA_VISIBLE_DEVICES='{setting}' hides 2 NVIDIA GPUs"
    )


@pytest.mark.parametrize(
    "script",
    ["echo 0, GPU-x, 1, broken; exit 9", "echo no devices were found", "exec /bin/sleep 60"],
)
def test_without_an_answer_of_nvidia_smi_the_driver_is_read(tmp_path: Path, script: str) -> None:
    environ = write_nvidia_smi(tmp_path / "bin", script)
    card = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-aaa1\n")
    start = time.monotonic()
    devices = find_devices(environ, root=tmp_path, deadline_s=0.2)
    assert devices.gpus == (Gpu(kind="cuda", name="NVIDIA H200", memory_mib=None),)
    assert time.monotonic() - start < 30


def test_device_files_alone_are_gpus(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    gpus = find_devices({"PATH": str(tmp_path)}, root=tmp_path).gpus
    assert gpus == (Gpu(kind="cuda", name="NVIDIA GPU", memory_mib=None),)


def test_amd_gpus_are_the_nodes_with_shader_units(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/kfd").touch()
    nodes = tmp_path / "sys/class/kfd/kfd/topology/nodes"
    for name, num_simd in (("0", 0), ("1", 416), ("2", 304)):
        (nodes / name / "mem_banks/0").mkdir(parents=True)
        text = f"simd_count {num_simd}\ngfx_target_version 90402\n"
        (nodes / name / "properties").write_text(text)
        bank = f"heap_type 1\nsize_in_bytes {192 << 30}\n"
        (nodes / name / "mem_banks/0/properties").write_text(bank)
    card = Gpu(kind="rocm", name="AMD GPU gfx90402", memory_mib=192 << 10)
    environ = {"PATH": str(tmp_path)}
    assert find_devices(environ, root=tmp_path).gpus == (card, card)
    assert find_devices(environ | {"HIP_VISIBLE_DEVICES": "1"}, root=tmp_path).gpus == (card,)


def test_a_model_is_a_folder_of_the_project_first(tmp_path: Path) -> None:
    folder = write_hollow_model(tmp_path / "models/student", num_bytes=1000)
    assert find_model("model.path", "models/student", project=tmp_path) == ModelFiles(
        key="model.path", path="models/student", folder=folder, weight_bytes=1000
    )


def test_a_model_in_the_cache_is_found(tmp_path: Path) -> None:
    repository = tmp_path / "hub/models--Qwen--Qwen3-0.6B"
    folder = write_hollow_model(repository / "snapshots/abc", num_bytes=1500)
    cache = tmp_path / "hub"
    (repository / "refs").mkdir()
    assert find_model("model.path", "Qwen/Qwen3-0.6B", project=tmp_path, cache=cache) == model(
        "Qwen/Qwen3-0.6B"
    )
    (repository / "refs/main").write_text("abc")
    found = model("Qwen/Qwen3-0.6B", folder=folder, weight_bytes=1500)
    assert find_model("model.path", "Qwen/Qwen3-0.6B", project=tmp_path, cache=cache) == found


def test_a_download_that_was_broken_off_is_not_on_this_machine(tmp_path: Path) -> None:
    repository = tmp_path / "models--a--b"
    folder = write_hollow_model(repository / "snapshots/abc", num_bytes=1500)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    index = {"weight_map": {"x": "model.safetensors", "y": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_model("model.path", "a/b", project=tmp_path, cache=tmp_path) == model("a/b")


def test_small_models_on_this_machine_run_on_the_cpu(tmp_path: Path) -> None:
    small = find_model(
        "model.path", str(write_hollow_model(tmp_path / "s", num_bytes=10**6)), project=tmp_path
    )
    check_models({small: "auto"}, devices=NO_GPU)


def test_a_gpu_takes_what_is_yet_to_be_downloaded() -> None:
    check_models({model("Qwen/Qwen3-8B"): "auto"}, devices=ONE_GPU)


def test_without_gpu_all_that_is_missing_is_in_one_message(tmp_path: Path) -> None:
    student = find_model("model.path", "Qwen/Qwen3-8B", project=tmp_path, cache=tmp_path)
    teacher = find_model("teacher.path", "Qwen/Qwen3-32B", project=tmp_path, cache=tmp_path)
    with pytest.raises(ModelError) as caught:
        check_models({student: "auto", teacher: "auto"}, devices=NO_GPU)
    where = f"neither a folder nor in the Hugging Face cache ({HF_HUB_CACHE})"
    assert str(caught.value) == (
        "Qwen/Qwen3-8B and Qwen/Qwen3-32B need GPUs, and none was found here (no nvidia-smi, no "
        "NVIDIA driver, no ROCm)\n"
        f"  model.path: Qwen/Qwen3-8B is {where}, and without a GPU nothing is downloaded\n"
        f"  teacher.path: Qwen/Qwen3-32B is {where}, and without a GPU nothing is downloaded\n"
        "To see the same loop on this machine's CPU: rnow demo\n"
        "To try anyway: engine.kind=local"
    )


def test_big_weights_need_a_gpu(tmp_path: Path) -> None:
    big = find_model(
        "teacher.path",
        str(write_hollow_model(tmp_path / "big", num_bytes=16 * 10**9)),
        project=tmp_path,
    )
    with pytest.raises(ModelError) as caught:
        check_models({big: "auto"}, devices=NO_GPU)
    assert str(caught.value) == (
        f"{tmp_path}/big needs a GPU, and none was found here (no nvidia-smi, no NVIDIA driver, no "
        "ROCm)\n"
        f"  teacher.path: {tmp_path}/big has 16.0 GB of weights; up to 4 GB run on a CPU\n"
        "To see the same loop on this machine's CPU: rnow demo\n"
        "To try anyway: engine.kind=local"
    )


@pytest.mark.parametrize("kind", ["local", "vllm"])
def test_an_engine_kind_that_is_asked_for_is_tried_anyway(kind: str) -> None:
    check_models({model("Qwen/Qwen3-32B"): kind}, devices=NO_GPU)


def test_each_role_is_judged_by_its_own_kind() -> None:
    models = {model("a/student"): "local", model("a/teacher"): "auto"}
    with pytest.raises(ModelError, match=r"^a/teacher needs a GPU, and none was found here "):
        check_models(models, devices=NO_GPU)


def test_a_torch_for_cpus_makes_no_use_of_a_gpu() -> None:
    usable = usable_gpus(ONE_GPU, torch_version="2.13.0+cpu")
    reason = "there is NVIDIA H200, but torch 2.13.0+cpu cannot use it"
    assert usable == Devices(gpus=(), reason=reason)
    assert usable_gpus(ONE_GPU, torch_version="2.13.0+cu130") == ONE_GPU
    assert usable_gpus(NO_GPU, torch_version="2.13.0+cpu") == NO_GPU


@pytest.mark.parametrize("kind", ["auto", "local"])
def test_a_folder_that_is_not_there_is_refused_everywhere(tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty").mkdir()
    student = find_model("model.path", "./models/student", project=tmp_path)
    teacher = find_model("teacher.path", "empty", project=tmp_path)
    with pytest.raises(ModelError) as caught:
        check_models({student: kind, teacher: kind}, devices=ONE_GPU)
    assert str(caught.value) == (
        "./models/student and empty cannot be loaded\n"
        "  model.path: there is no folder ./models/student\n"
        f"  teacher.path: {tmp_path}/empty has no weights (*.safetensors or pytorch_model*.bin)"
    )


@pytest.mark.parametrize("kind", ["auto", "local", "vllm"])
def test_a_folder_that_is_not_beside_others_is_no_hub_id(tmp_path: Path, kind: str) -> None:
    for name in ("student", "teacher"):
        (tmp_path / "models" / name).mkdir(parents=True)
    found = find_model("model.path", "models/studnet", project=tmp_path, cache=tmp_path)
    with pytest.raises(ModelError) as caught:
        check_models({found: kind}, devices=ONE_GPU)
    assert str(caught.value) == (
        "models/studnet cannot be loaded\n"
        "  model.path: there is no folder models/studnet, and models/ has student, teacher; "
        "correct model.path, or, if Hugging Face's is meant: hf download models/studnet"
    )
    elsewhere = find_model("model.path", "nobody/student", project=tmp_path, cache=tmp_path)
    assert set(check_models({elsewhere: kind}, devices=ONE_GPU)) == {elsewhere}
