"""Plans for models of other families than Llama's, by their published config.json alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from rnow.config.load import load_config
from rnow.errors import ConfigError
from rnow.plan.devices import Devices, Gpu
from rnow.plan.figures import ModelFigures, read_figures
from rnow.plan.make import make_plan
from rnow.plan.records import Plan
from rnow.plan.workload import Workload

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "tests" / "fixtures" / "configs"
H100 = Gpu(kind="cuda", name="NVIDIA H100 80GB HBM3", memory_mib=81559)


def figures(name: str | None) -> ModelFigures | None:
    if name is None:
        return None
    return read_figures(name, json.loads((CONFIGS / f"{name}.json").read_text()))


def plan(
    student: str | None, teacher: str | None, *settings: str, num_gpus: int, **engines: Any
) -> Plan:
    """Plan the reference project with other models."""
    work = Workload(
        config=load_config(ROOT, overrides=list(settings)).config,
        student=figures(student),
        teacher=figures(teacher),
        **engines,
    )
    return make_plan(work, Devices(gpus=(H100,) * num_gpus, reason=""))


def places(made: Plan) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {item.role: item.replica_gpus for item in made.roles}


def table(text: str) -> tuple[str, ...]:
    return tuple(text.strip().splitlines())


def test_qwen3_8b_from_a_mixture_of_30b() -> None:
    assert plan("Qwen3-8B", "Qwen3-30B-A3B", num_gpus=2).lines()[:4] == table(
        """
GiB a GPU  GPU  weights  LoRA  optimizer  activations  KV cache  log-probs  overhead  total
trainer    0       15.3   0.3        1.0         16.6         ·          ·       2.7   35.8
student    0       15.3   0.3          ·          1.8      22.2          ·       2.0   41.6
teacher    1       56.9     ·          ·          0.3      15.8        2.3       2.0   77.3
"""
    )


def test_qwen3_8b_from_a_mixture_of_235b_that_runs_elsewhere() -> None:
    made = plan("Qwen3-8B", None, num_gpus=2, teacher_engine="url")
    assert places(made) == {"trainer": ((0,),), "student": ((1,),)}
    assert set(made.times.seconds) == {"trainer", "student"}
    with pytest.raises(ConfigError, match=r"^Qwen3-32B does not fit on 1 GPU: GPU 0 can give"):
        plan("Qwen3-32B", None, num_gpus=1, teacher_engine="url")


def test_qwen3_8b_from_a_mixture_of_235b_that_is_cut_over_eight() -> None:
    made = plan("Qwen3-8B", "Qwen3-235B-A22B", num_gpus=10)
    assert places(made) == {
        "trainer": ((0,),),
        "student": ((1,),),
        "teacher": (tuple(range(2, 10)),),
    }


def test_gemma_3_4b_from_27b() -> None:
    lines = plan("gemma-3-4b-it", "gemma-3-27b-it", num_gpus=2).lines()
    assert lines[:4] == table(
        """
GiB a GPU  GPU  weights  LoRA  optimizer  activations  KV cache  log-probs  overhead  total
trainer    0        8.0   0.3        0.9         11.0         ·          ·       2.1   22.2
student    0        8.0   0.3          ·          2.0      42.9          ·       2.0   55.2
teacher    1       51.1     ·          ·          0.5      19.8        4.0       2.0   77.4
"""
    )
    # A text of full length takes little where most layers keep a window of it.
    assert lines[5].startswith(
        "student: 1 vLLM server with gpu_memory_utilization 0.7; room for 26 of 64 rollouts"
    )


def test_qwen3_5_9b_from_27b_whose_layers_mostly_keep_a_state() -> None:
    lines = plan("Qwen3.5-9B", "Qwen3.5-27B", num_gpus=3).lines()
    assert lines[:4] == table(
        """
GiB a GPU  GPU  weights  LoRA  optimizer  activations  KV cache  log-probs  overhead  total
trainer    0       16.7   0.3        1.0         15.9         ·          ·       2.6   36.4
student    1       17.5   0.3          ·          2.2      52.9          ·       2.0   75.0
teacher    2       51.0     ·          ·          0.4      20.2        3.8       2.0   77.4
"""
    )


@pytest.mark.parametrize(
    ("student", "teacher", "num_gpus"),
    [
        ("GLM-4-9B-0414", "gpt-oss-20b", 2),
        ("gpt-oss-20b", "Qwen3-Next-80B-A3B-Instruct", 6),
        ("Qwen3-30B-A3B", "DeepSeek-V2-Lite", 3),
    ],
)
def test_no_family_is_refused_for_want_of_a_table(
    student: str, teacher: str, num_gpus: int
) -> None:
    made = plan(student, teacher, num_gpus=num_gpus)
    assert all(item.memory is not None for item in made.roles)


def test_where_nothing_is_known_the_settings_are_taken_and_the_table_has_no_row() -> None:
    settings = ("resources.teacher.gpus=2", "engine.gpu_memory_utilization=0.9")
    made = plan("Qwen3-8B", None, *settings, num_gpus=4)
    assert places(made) == {"trainer": ((0,),), "student": ((1,),), "teacher": ((2, 3),)}
    teacher = made.role("teacher")
    assert teacher is not None
    assert teacher.server is not None
    assert (teacher.memory, teacher.server.gpu_memory_utilization) == (None, 0.9)
    lines = made.lines()
    assert [line.split()[0] for line in lines[:3]] == ["GiB", "trainer", "student"]
    assert lines[5] == "GPU 2-3, NVIDIA H100 80GB HBM3: the teacher's, memory not known"
    assert lines[7:] == (
        "teacher: 1 vLLM server over 2 GPUs with gpu_memory_utilization 0.9",
        "teacher, Qwen/Qwen3-32B: it has no row in the table, and whether it fits shows when it is "
        "loaded",
    )


def test_servers_of_an_unknown_model_are_as_many_as_the_settings_say() -> None:
    settings = ("resources.teacher.gpus=4", "engine.gpu_memory_utilization=0.9")
    made = plan("Qwen3-8B", None, *settings, "teacher.replicas=2", num_gpus=6)
    assert places(made)["teacher"] == ((2, 3), (4, 5))
    nothing = plan(None, None, *settings, num_gpus=6)
    assert not any(line.startswith("GiB") for line in nothing.lines())
    assert places(nothing) == {"trainer": ((0,),), "student": ((1,),), "teacher": ((2, 3, 4, 5),)}
