import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import write_hollow_model
from safetensors.numpy import save_file

from rnow.config.load import load_config
from rnow.engines.spec import EngineSpec
from rnow.engines.vllm.command import VllmServerSettings
from rnow.plan.devices import Devices, Gpu
from rnow.plan.engine_specs import (
    RankSpec,
    Serving,
    adapted_layers,
    adapter_dtype,
    adapter_rank,
    dtype_tolerance,
    rank_specs,
    sampling_spec,
    scoring_spec,
    trainer_environment,
)
from rnow.plan.nodes import Machine
from rnow.plan.placing import place_roles

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "tests" / "fixtures" / "configs"
H100 = Gpu(kind="cuda", name="NVIDIA H100 80GB HBM3", memory_mib=81559)
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The reference project with models of published figures, whose weights take no room."""
    shutil.copy(ROOT / "config.yml", tmp_path)
    for name in ("Qwen3-1.7B", "Qwen3-8B", "Qwen3-32B"):
        (tmp_path / "Qwen" / name).mkdir(parents=True)
        shutil.copy(CONFIGS / f"{name}.json", tmp_path / "Qwen" / name / "config.json")
        write_hollow_model(tmp_path / "Qwen" / name)
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return tmp_path


def make_serving(project: Path, *overrides: str, num_gpus: int, environ: Any = None) -> Serving:
    loaded = load_config(project, overrides=["engine.python=python", *overrides])
    devices = Devices(gpus=(H100,) * num_gpus, reason="" if num_gpus else "none")
    return Serving(
        config=loaded.config,
        placement=place_roles(loaded, project, devices=devices),
        logs=project / "logs",
        untied=project / "untied",
        environ=environ or {},
    )


def specs(serving: Serving, project: Path) -> tuple[EngineSpec, EngineSpec]:
    student, teacher = project / "Qwen/Qwen3-8B", project / "Qwen/Qwen3-32B"
    return (
        sampling_spec(serving, "student", student, lora_rank=32),
        scoring_spec(serving, teacher),
    )


def test_adapters_go_out_in_what_our_own_server_rounds_them_to(project: Path) -> None:
    assert adapter_dtype(make_serving(project, num_gpus=2)) == "bfloat16"
    elsewhere = make_serving(project, "engine.url=http://127.0.0.1:1", num_gpus=2)
    assert adapter_dtype(elsewhere) is None
    here = ("engine.kind=local", "model.path=Qwen/Qwen3-1.7B", "teacher.path=Qwen/Qwen3-1.7B")
    assert adapter_dtype(make_serving(project, *here, num_gpus=0)) is None


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("q_proj", ("q_proj",)),
        ("gate_up_proj", ("gate_up_proj",)),
        ("router", ()),  # vLLM may know it by another name, and would leave it out
    ],
)
def test_a_server_is_told_layers_that_it_knows_by_the_same_name(
    tmp_path: Path, name: str, layers: tuple[str, ...]
) -> None:
    matrix = np.ones((2, 2), np.float32)
    weights = {f"model.layers.0.{name}.weight": matrix, "lm_head.weight": matrix}
    save_file(weights, tmp_path / "model.safetensors")
    assert adapted_layers(tmp_path) == layers


def test_a_server_is_told_the_layers_of_our_own_adapters_alone(project: Path) -> None:
    serving, student = make_serving(project, num_gpus=2), project / "Qwen/Qwen3-8B"
    save_file(
        {"model.layers.0.self_attn.q_proj.weight": np.ones((2, 2), np.float32)},
        student / "model.safetensors",
    )
    told = [
        sampling_spec(serving, "student", student, lora_rank=rank, is_trained=is_ours)
        for rank, is_ours in ((32, True), (32, False), (None, True))
    ]
    assert [spec.servers[0].lora_targets for spec in told] == [("q_proj",), (), ()]


def test_two_gpus_of_80_gb_serve_the_reference_project_like_this(project: Path) -> None:
    student, teacher = specs(make_serving(project, num_gpus=2), project)
    assert (student.tolerance, teacher.tolerance) == (0.1, 0.1)
    assert student.servers == (
        VllmServerSettings(
            role="student",
            model=project / "Qwen/Qwen3-8B",
            log_file=project / "logs/student.log",
            max_model_len=32768,
            python=str(project / "python"),
            devices=ORDER | {"CUDA_VISIBLE_DEVICES": "0"},
            dtype="bfloat16",
            deterministic=False,
            start_timeout_s=900.0,
            gpu_memory_utilization=0.527,
            max_lora_rank=32,
            max_num_batched_tokens=8192,
            max_num_seqs=256,
        ),
    )
    assert teacher.servers == (
        VllmServerSettings(
            role="teacher",
            model=project / "Qwen/Qwen3-32B",
            log_file=project / "logs/teacher.log",
            max_model_len=32769,
            python=str(project / "python"),
            devices=ORDER | {"CUDA_VISIBLE_DEVICES": "1"},
            dtype="bfloat16",
            deterministic=False,
            start_timeout_s=900.0,
            gpu_memory_utilization=0.95,
            prefix_caching=False,
            captures_graphs=False,
            max_num_batched_tokens=2048,
            max_num_seqs=16,
        ),
    )


@pytest.mark.parametrize(
    ("num_rollouts", "replicas", "requests"), [(64, 1, 128), (64, 4, 32), (16, 7, 8), (512, 1, 256)]
)
def test_a_server_takes_twice_its_share_of_the_rollouts_at_once(
    project: Path, num_rollouts: int, replicas: int, requests: int
) -> None:
    overrides = ("engine.kind=vllm", f"engine.replicas={replicas}")
    serving = make_serving(project, *overrides, num_gpus=0)
    model = project / "Qwen/Qwen3-8B"
    spec = sampling_spec(serving, "student", model, lora_rank=32, num_rollouts=num_rollouts)
    assert [server.max_num_seqs for server in spec.servers] == [requests] * replicas


def test_each_replica_has_gpus_and_a_log_of_its_own(project: Path) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "8,9,10,11,12,13,14,15"}
    student, teacher = specs(make_serving(project, num_gpus=8, environ=environ), project)
    seen = [
        (server.log_file.name, server.devices["CUDA_VISIBLE_DEVICES"])
        for server in (*student.servers, *teacher.servers)
    ]
    assert seen == [
        ("student.log", "9"),
        ("student-1.log", "10"),
        ("student-2.log", "11"),
        ("student-3.log", "12"),
        ("teacher.log", "13"),
        ("teacher-1.log", "14"),
        ("teacher-2.log", "15"),
    ]


def test_the_trainer_sees_its_own_gpu_alone(project: Path) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "4,5"}
    plan = make_serving(project, num_gpus=2, environ=environ).placement.plan
    devices = ORDER | {"CUDA_VISIBLE_DEVICES": "4"}
    growing = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert trainer_environment(plan, environ) == devices | growing
    chosen = {**environ, "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}
    assert trainer_environment(plan, chosen) == devices
    assert trainer_environment(None, environ) == {}
    # A server is told its GPUs when it starts; only what is in this process needs to be.
    assert trainer_environment(plan, environ, role="student") == {}


def test_settings_of_each_role_reach_its_servers(project: Path) -> None:
    serving = make_serving(
        project,
        "engine.args={max_num_seqs: 8}",
        "teacher.args={swap_space: 2}",
        "teacher.quantization=fp8",
        "engine.start_timeout_s=33",
        "engine.request_timeout_s=44",
        "engine.gpu_memory_utilization=0.9",
        "engine.deterministic=true",
        num_gpus=8,
    )
    student, teacher = specs(serving, project)
    assert (student.request_timeout_s, teacher.request_timeout_s) == (44, 44)
    assert student.servers[0].args == {"max_num_seqs": 8}
    assert teacher.servers[0].args == {"swap_space": 2}
    assert (student.servers[0].quantization, teacher.servers[0].quantization) == (None, "fp8")
    assert all(spec.servers[0].deterministic for spec in (student, teacher))
    assert [spec.servers[0].start_timeout_s for spec in (student, teacher)] == [33, 33]
    assert student.servers[0].gpu_memory_utilization == pytest.approx(0.9, abs=0.011)


def test_on_a_cpu_servers_are_as_many_as_asked_for_and_in_float32(project: Path) -> None:
    overrides = ("engine.kind=vllm", "engine.replicas=2", "teacher.dtype=bfloat16")
    student, teacher = specs(make_serving(project, *overrides, num_gpus=0), project)
    assert [server.log_file.name for server in student.servers] == ["student.log", "student-1.log"]
    assert [server.dtype for server in student.servers] == ["float32", "float32"]
    assert [server.devices for server in (*student.servers, *teacher.servers)] == [{}, {}, {}]
    assert teacher.servers[0].dtype == "bfloat16"
    assert (student.tolerance, teacher.tolerance) == (0.001, 0.1)
    assert teacher.servers[0].max_num_batched_tokens == 2048


def test_a_tied_model_whose_weights_will_be_replaced_starts_untied(project: Path) -> None:
    serving = make_serving(project, "engine.kind=vllm", num_gpus=0)
    tied, untied = project / "Qwen/Qwen3-1.7B", project / "Qwen/Qwen3-8B"
    spec = sampling_spec(serving, "student", tied, lora_rank=None, takes_models=True)
    assert spec.model == tied
    assert spec.untied == project / "untied"
    assert spec.servers[0].model == project / "untied" / "start"
    spec = sampling_spec(serving, "student", untied, lora_rank=None, takes_models=True)
    assert (spec.untied, spec.servers[0].model) == (None, untied)
    spec = sampling_spec(serving, "student", tied, lora_rank=8)
    assert (spec.untied, spec.servers[0].model) == (None, tied)


def test_engines_that_rnow_does_not_start_have_no_servers(project: Path) -> None:
    serving = make_serving(
        project, "engine.kind=local", "teacher.url=http://127.0.0.1:8000", num_gpus=0
    )
    student, teacher = specs(serving, project)
    assert (student.servers, student.urls) == ((), ())
    assert (teacher.servers, teacher.urls) == ((), ("http://127.0.0.1:8000",))
    assert replace(student, urls=("x",)).device == "cpu"


def test_an_adapter_says_its_rank(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 24}))
    assert adapter_rank(tmp_path) == 24


@pytest.mark.parametrize(
    ("dtypes", "device", "nats"),
    [
        (("auto", "auto"), "cpu", 0.001),
        (("auto", "float32"), "cpu", 0.001),
        (("auto", "bfloat16"), "cpu", 0.1),  # the engine in float32, the trainer not
        (("bfloat16", "auto"), "cpu", 0.1),
        (("auto", "auto"), "cuda", 0.1),
        (("float32", "auto"), "cuda", 0.1),
        (("float32", "float32"), "cuda", 0.001),
    ],
)
def test_two_views_agree_as_far_as_the_coarser_of_them(
    dtypes: tuple[str, str], device: str, nats: float
) -> None:
    assert dtype_tolerance(*dtypes, device=device) == nats


def test_each_rank_sees_its_own_gpu_alone(project: Path) -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "7,6,5,4,3"}
    serving = make_serving(project, "trainer.num_ranks=2", num_gpus=5, environ=environ)
    assert rank_specs(serving) == (
        RankSpec(environment=ORDER | {"CUDA_VISIBLE_DEVICES": "7"}),
        RankSpec(environment=ORDER | {"CUDA_VISIBLE_DEVICES": "6"}),
    )
    assert rank_specs(make_serving(project, num_gpus=5)) == ()
    local = ("engine.kind=local", "trainer.num_ranks=2")
    none = RankSpec(environment={})
    assert rank_specs(make_serving(project, *local, num_gpus=0)) == (none, none)


def test_ranks_without_gpus_are_dealt_to_machines_after_the_servers(project: Path) -> None:
    serving = make_serving(project, "engine.kind=local", "trainer.num_ranks=2", num_gpus=0)
    machines = tuple(
        Machine(id=id, host=id, address="", cores=1, gpus=(), own={}, served={}) for id in "abc"
    )
    serving = replace(serving, placement=replace(serving.placement, machines=machines))
    assert [spec.node for spec in rank_specs(serving)] == ["b", "c"]
    served = replace(serving.placement, engines={"student": "vllm", "teacher": "vllm"})
    assert [spec.node for spec in rank_specs(replace(serving, placement=served))] == ["a", "b"]
