import json
import shutil
import sys
from pathlib import Path

import pytest
from builders import write_hollow_model

from rnow.config.load import LoadedConfig, load_config
from rnow.errors import ConfigError, ModelError
from rnow.plan.devices import Devices, Gpu, usable_gpus
from rnow.plan.model_files import find_model
from rnow.plan.placing import (
    EngineRole,
    Placement,
    engine_urls,
    find_python,
    place_roles,
    place_sampler,
)

CONFIGS = Path(__file__).parents[2] / "fixtures" / "configs"
H100 = Gpu(kind="cuda", name="NVIDIA H100 80GB HBM3", memory_mib=81559)
NO_GPU = Devices(gpus=(), reason="no nvidia-smi, no NVIDIA driver, no ROCm")
TWO_GPUS = Devices(gpus=(H100, H100), reason="")
CONFIG = """
data: {batch_size: 16}
model: {path: student}
teacher: {path: teacher}
trainer: {num_epochs: 1}
"""

REACH_8B = "LoRA adapts 85% of the student's 8.2 B weights: all linear layers but the LM head"
REACH_2B = "LoRA adapts 82% of the student's 1.7 B weights: all linear layers but the LM head"


SMALL = ("model.path=small", "teacher.path=small")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two models of published figures, whose weights take no room; two interpreters."""
    (tmp_path / "config.yml").write_text(CONFIG)
    for role, name in (
        ("student", "Qwen3-8B"),
        ("teacher", "Qwen3-32B"),
        ("small", "Qwen3-1.7B"),
    ):
        (tmp_path / role).mkdir()
        shutil.copy(CONFIGS / f"{name}.json", tmp_path / role / "config.json")
        write_hollow_model(tmp_path / role)
    for name, status in (("with_vllm", 0), ("without_vllm", 3)):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\nexit {status}\n")
        program.chmod(0o755)
    return tmp_path


def load(project: Path, *overrides: str) -> LoadedConfig:
    return load_config(project, overrides=overrides)


def placed(project: Path, *overrides: str, devices: Devices = NO_GPU) -> Placement:
    return place_roles(load(project, *overrides), project, devices=devices)


def test_without_a_gpu_auto_is_this_process_and_says_so(project: Path) -> None:
    made = placed(project, "engine.python=with_vllm", *SMALL)
    assert made.engines == {"student": "local", "teacher": "local"}
    assert made.device == "cpu"
    assert made.plan is None
    assert made.lines() == (
        "engine.kind auto: models run in this process, without vLLM (no nvidia-smi, no NVIDIA "
        "driver, no ROCm)",
        REACH_2B,
        "student: in this process, cpu; teacher: in this process, cpu",
    )


def test_with_a_gpu_and_vllm_auto_is_vllm_and_the_plan_is_shown(project: Path) -> None:
    made = placed(project, "engine.python=with_vllm", devices=TWO_GPUS)
    assert made.engines == {"student": "vllm", "teacher": "vllm"}
    assert made.device == "cuda"
    assert made.plan is not None
    assert made.notices == (REACH_8B,)
    assert made.lines() == (REACH_8B, *made.plan.lines())
    assert [line.partition(":")[0] for line in made.unseen] == [
        f"{project}/student",
        f"{project}/teacher",
    ]
    assert made.lines()[-2].startswith("teacher: 1 vLLM server with gpu_memory_utilization ")


def test_with_a_gpu_and_no_vllm_auto_is_this_process_and_says_what_to_do(project: Path) -> None:
    made = placed(project, "engine.python=without_vllm", *SMALL, devices=TWO_GPUS)
    assert made.engines == {"student": "local", "teacher": "local"}
    assert made.notices == (
        f"engine.kind auto: models run in this process; {project}/without_vllm has no vLLM; make "
        "an environment for it (python -m venv vllm; vllm/bin/pip install vllm) and name "
        "vllm/bin/python as engine.python",
        REACH_2B,
    )


def test_vllm_that_is_asked_for_must_be_there(project: Path) -> None:
    for key in ("engine.kind", "teacher.engine"):
        with pytest.raises(ConfigError) as caught:
            placed(project, f"{key}=vllm", "engine.python=without_vllm", *SMALL)
        assert str(caught.value).startswith(
            f"{key} is vllm, but {project}/without_vllm has no vLLM; make an environment for it "
        )
    with pytest.raises(ConfigError, match=r"^engine.python is /no/python, which cannot be run: "):
        placed(project, "engine.kind=vllm", "engine.python=/no/python")


def test_adapters_in_float32_are_refused_where_vllm_has_no_kernel_for_them(project: Path) -> None:
    words = ("engine.python=with_vllm", "engine.dtype=float32")
    with pytest.raises(ConfigError) as error:
        placed(project, *words, devices=TWO_GPUS)
    assert str(error.value) == (
        "engine.dtype is float32, and vLLM on a GPU serves adapters in bfloat16 only; "
        "set engine.dtype to bfloat16, or engine.kind to local"
    )
    assert placed(project, *words, *SMALL, "engine.kind=local", devices=TWO_GPUS)
    assert placed(project, *words, *SMALL, "model.tuning=full", devices=TWO_GPUS)
    assert placed(project, *words, *SMALL, "engine.kind=vllm", "engine.python=with_vllm").engines


def test_each_role_may_have_an_engine_of_its_own(project: Path) -> None:
    made = placed(project, "engine.kind=vllm", "teacher.engine=local", "engine.python=with_vllm")
    assert made.engines == {"student": "vllm", "teacher": "local"}
    assert made.lines() == (
        REACH_8B,
        "student: a vLLM server on the CPU; teacher: in this process, cpu",
    )
    made = placed(project, "engine.kind=local", "teacher.engine=vllm", "engine.python=with_vllm")
    assert made.engines == {"student": "local", "teacher": "vllm"}


def test_servers_of_the_users_own_need_neither_vllm_nor_weights_here(project: Path) -> None:
    shutil.rmtree(project / "teacher")
    made = placed(project, "teacher.url=http://10.0.0.2:8000", "engine.kind=local")
    assert made.engines == {"student": "local", "teacher": "url"}
    assert made.lines()[-1] == (
        "student: in this process, cpu; teacher: a server of your own (http://10.0.0.2:8000)"
    )
    config = load(project, "engine.url=[http://a:1, http://b:2]").config
    assert engine_urls(config, "student") == ("http://a:1", "http://b:2")
    assert engine_urls(config, "teacher") == ()


def test_a_torch_without_cuda_leaves_gpus_unused(project: Path) -> None:
    made = placed(project, *SMALL, devices=usable_gpus(TWO_GPUS, torch_version="2.13.0+cpu"))
    assert (made.device, made.plan) == ("cpu", None)
    reason = "there is NVIDIA H100 80GB HBM3, but torch 2.13.0+cpu cannot use it"
    assert made.notices == (
        f"engine.kind auto: models run in this process, without vLLM ({reason})",
        REACH_2B,
    )


def test_an_amd_gpu_is_left_to_those_who_ask_for_it(project: Path) -> None:
    amd = Devices(gpus=(Gpu(kind="rocm", name="AMD GPU", memory_mib=196608),), reason="")
    made = placed(project, "engine.python=with_vllm", *SMALL, devices=amd)
    assert made.engines["student"] == "local"
    assert made.notices == (
        "engine.kind auto: models run in this process, without vLLM (AMD GPU is no CUDA device)",
        REACH_2B,
    )


def test_resources_say_which_gpus_each_role_gets(project: Path) -> None:
    gpus = Devices(gpus=(H100,) * 8, reason="")
    resources = "resources={student: {gpus: 2}, teacher: {gpus: 4}}"
    made = placed(project, "engine.python=with_vllm", resources, devices=gpus)
    assert made.plan is not None
    assert {item.role: item.gpus for item in made.plan.roles} == {
        "trainer": (0,),
        "student": (1, 2),
        "teacher": (3, 4, 5, 6),
    }


WITHOUT_HEADS = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2}


def test_a_model_of_unknown_memory_takes_the_gpus_that_it_is_given(project: Path) -> None:
    (project / "teacher" / "config.json").write_text(json.dumps(WITHOUT_HEADS))
    write_hollow_model(project / "teacher")
    devices = Devices(gpus=(H100,) * 4, reason="")
    with pytest.raises(ModelError) as caught:
        placed(project, "engine.python=with_vllm", devices=devices)
    assert str(caught.value) == (
        "how much memory teacher takes is not known (teacher: its config.json has no whole number "
        "as num_attention_heads); set resources and engine.gpu_memory_utilization, which are then "
        "taken as they are"
    )
    said = ("resources={teacher: {gpus: 2}}", "engine.gpu_memory_utilization=0.8")
    made = placed(project, "engine.python=with_vllm", *said, devices=devices)
    assert made.plan is not None
    assert {item.role: item.gpus for item in made.plan.roles} == {
        "trainer": (0,),
        "student": (1,),
        "teacher": (2, 3),
    }


def test_a_teacher_that_runs_elsewhere_needs_no_figures_nor_files(project: Path) -> None:
    at = "teacher.url=http://localhost:1"
    (project / "teacher" / "config.json").write_text(json.dumps(WITHOUT_HEADS))
    made = placed(project, "engine.python=with_vllm", at, devices=TWO_GPUS)
    assert made.plan is not None
    assert [item.role for item in made.plan.roles] == ["trainer", "student"]
    shutil.rmtree(project / "teacher")
    made = place_roles(
        load(project, "engine.python=with_vllm", at, "teacher.path=some/model"),
        project,
        devices=TWO_GPUS,
        may_download=False,
    )
    assert made.plan is not None


def test_an_interpreter_is_one_of_the_project_or_what_the_shell_would_take(project: Path) -> None:
    assert find_python(load(project).config, project) is None
    config = load(project, "engine.python=with_vllm").config
    assert find_python(config, project) == str(project / "with_vllm")
    config = load(project, f"engine.python={sys.executable}").config
    assert find_python(config, project) == sys.executable
    assert find_python(load(project, "engine.python=python3").config, project) == "python3"


def placed_alone(project: Path, *overrides: str, role: EngineRole, devices: Devices) -> Placement:
    return place_sampler(
        load(project, *overrides),
        project,
        role=role,
        model=find_model("model.path", role, project=project),
        lora_rank=None,
        devices=devices,
    )


def test_what_samples_alone_is_placed_where_training_would_not_fit(project: Path) -> None:
    one_gpu = Devices(gpus=(H100,), reason="")
    with pytest.raises(ConfigError, match=r"^student and its teacher teacher do not fit on 1 GPU"):
        placed(project, "engine.python=with_vllm", devices=one_gpu)
    for role in ("student", "teacher"):
        made = placed_alone(project, "engine.python=with_vllm", role=role, devices=one_gpu)
        assert made.engines == {role: "vllm"}
        assert made.plan is not None
        assert [item.role for item in made.plan.roles] == [role]


def test_what_samples_alone_needs_no_other_model_on_this_machine(project: Path) -> None:
    shutil.rmtree(project / "teacher")
    made = placed_alone(project, "engine.kind=local", role="student", devices=NO_GPU)
    assert made.lines() == ("student: in this process, cpu",)
    shutil.rmtree(project / "student")
    url = "engine.url=http://127.0.0.1:1"
    made = placed_alone(project, url, role="student", devices=NO_GPU)
    assert (made.plan, made.lines()) == (
        None,
        ("student: a server of your own (http://127.0.0.1:1)",),
    )
