import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rnow.config.load import load_config
from rnow.errors import ConfigError, ModelError
from rnow.plan.devices import Devices, Gpu
from rnow.plan.figures import ModelFigures, read_figures
from rnow.plan.make import device_variables, make_plan
from rnow.plan.memory import GIB
from rnow.plan.records import Plan, Role
from rnow.plan.workload import Workload

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "tests" / "fixtures" / "configs"

H100 = Gpu(kind="cuda", name="NVIDIA H100 80GB HBM3", memory_mib=81559)
L40S = Gpu(kind="cuda", name="NVIDIA L40S", memory_mib=46068)
L4 = Gpu(kind="cuda", name="NVIDIA L4", memory_mib=23034)


def figures(name: str, **changes: Any) -> ModelFigures:
    published = json.loads((CONFIGS / f"{name}.json").read_text())
    return read_figures(f"Qwen/{name}", published | changes)


def workload(student: str, teacher: str, *settings: str, **engines: Any) -> Workload:
    """The reference project's, with other models, settings and engines."""
    config = load_config(ROOT, overrides=list(settings)).config
    return Workload(config=config, student=figures(student), teacher=figures(teacher), **engines)


def plan(work: Workload, *gpus: Gpu) -> Plan:
    return make_plan(work, Devices(gpus=gpus, reason=""))


def refusal(work: Workload, *gpus: Gpu) -> str:
    with pytest.raises(ConfigError) as error:
        plan(work, *gpus)
    return str(error.value)


def table(text: str) -> tuple[str, ...]:
    return tuple(text.strip().splitlines())


def gpus_of(made: Plan) -> dict[Role, tuple[tuple[int, ...], ...]]:
    return {item.role: item.replica_gpus for item in made.roles}


def test_qwen3_8b_from_32b_on_two_gpus_of_80_gb() -> None:
    made = plan(workload("Qwen3-8B", "Qwen3-32B"), H100, H100)
    assert gpus_of(made) == {"trainer": ((0,),), "student": ((0,),), "teacher": ((1,),)}
    assert made.is_shared
    lines = made.lines()
    assert lines[:4] == table(
        """
GiB a GPU  GPU  weights  LoRA  optimizer  activations  KV cache  log-probs  overhead  total
trainer    0       15.3   0.3        1.0         16.6         ·          ·       2.7   35.8
student    0       15.3   0.3          ·          1.8      22.2          ·       2.0   41.6
teacher    1       61.0     ·          ·          0.5      11.4        2.3       2.0   77.3
"""
    )
    assert lines[4:] == (
        "GPU 0, NVIDIA H100 80GB HBM3: 77.4 of 79.6 GiB",
        "GPU 1, NVIDIA H100 80GB HBM3: 77.3 of 79.6 GiB",
        "student: 1 vLLM server with gpu_memory_utilization 0.527; "
        "room for 4 of 64 rollouts at full length (32,768 tokens)",
        "teacher: 1 vLLM server with gpu_memory_utilization 0.95; "
        "room for 1 of 64 rollouts at full length (32,768 tokens)",
        "a step, estimated without tools: trainer 4 min 38 s, student 6 min 16 s, "
        "teacher 3 min 31 s; 10 min 54 s in all, bound by the student; 0.36 GPU hours "
        "(H100 from the device table)",
    )


def test_a_server_is_told_its_numbers() -> None:
    made = plan(workload("Qwen3-8B", "Qwen3-32B"), H100, H100)
    student, teacher = made.role("student"), made.role("teacher")
    assert student is not None
    assert student.server is not None
    assert teacher is not None
    assert teacher.server is not None
    assert (student.server.load.max_model_len, student.server.load.max_num_batched_tokens) == (
        32768,
        8192,
    )
    # One token more than the window, since a token is generated beside the scores.
    assert (teacher.server.load.max_model_len, teacher.server.load.max_num_batched_tokens) == (
        32769,
        2048,
    )
    assert (student.server.load.max_num_seqs, teacher.server.load.max_num_seqs) == (256, 16)
    assert (student.server.num_texts, teacher.server.num_texts) == (4, 1)


def test_qwen3_8b_from_32b_on_eight_gpus_of_80_gb() -> None:
    made = plan(workload("Qwen3-8B", "Qwen3-32B"), *[H100] * 8)
    assert gpus_of(made) == {
        "trainer": ((0,),),
        "student": ((1,), (2,), (3,), (4,)),
        "teacher": ((5,), (6,), (7,)),
    }
    assert not made.is_shared
    assert made.lines()[4:] == (
        "GPU 0, NVIDIA H100 80GB HBM3: 35.8 of 79.6 GiB",
        "GPU 1-4, NVIDIA H100 80GB HBM3: 75.0 of 79.6 GiB",
        "GPU 5-7, NVIDIA H100 80GB HBM3: 77.3 of 79.6 GiB",
        "student: 4 vLLM servers with gpu_memory_utilization 0.95; "
        "room for 48 of 64 rollouts at full length (32,768 tokens)",
        "teacher: 3 vLLM servers with gpu_memory_utilization 0.95; "
        "room for 3 of 64 rollouts at full length (32,768 tokens)",
        "a step, estimated without tools: trainer 4 min 38 s, student 1 min 21 s, "
        "teacher 1 min 10 s; 5 min 59 s in all, bound by the trainer; 0.8 GPU hours "
        "(H100 from the device table)",
        "with trainer.num_ranks: 3 a step would take 3 min 18 s in the place of 5 min 59 s",
    )


def test_qwen3_4b_from_8b_in_fp8_on_one_gpu_of_80_gb() -> None:
    made = plan(workload("Qwen3-4B", "Qwen3-8B", "teacher.quantization=fp8"), H100)
    lines = made.lines()
    assert lines[:4] == table(
        """
GiB a GPU  GPU  weights  LoRA  optimizer  activations  KV cache  log-probs  overhead  total
trainer    0        7.5   0.2        0.7         11.6         ·          ·       2.2   22.2
student    0        7.5   0.2          ·          1.6      21.4          ·       2.0   32.7
teacher    0        8.8     ·          ·          0.3       9.0        2.3       2.0   22.4
"""
    )
    assert lines[4:7] == (
        "GPU 0, NVIDIA H100 80GB HBM3: 77.4 of 79.6 GiB",
        "student: 1 vLLM server with gpu_memory_utilization 0.415; "
        "room for 4 of 64 rollouts at full length (32,768 tokens)",
        "teacher: 1 vLLM server with gpu_memory_utilization 0.255; "
        "room for 2 of 64 rollouts at full length (32,768 tokens)",
    )


def test_qwen3_1_7b_from_8b_in_fp8_on_two_gpus_of_24_gb() -> None:
    work = workload(
        "Qwen3-1.7B", "Qwen3-8B", "teacher.quantization=fp8", "rollout.max_context_window=16384"
    )
    lines = plan(work, L4, L4).lines()
    assert lines[:4] == table(
        """
GiB a GPU  GPU  weights  LoRA  optimizer  activations  KV cache  log-probs  overhead  total
trainer    0        3.2   0.1        0.4          3.7         ·          ·       1.4    8.8
student    0        3.2   0.1          ·          0.9       5.2          ·       2.0   11.4
teacher    1        8.8     ·          ·          0.3       6.8        2.3       2.0   20.2
"""
    )
    assert lines[4:7] == (
        "GPU 0-1, NVIDIA L4: 20.2 of 22.5 GiB",
        "student: 1 vLLM server with gpu_memory_utilization 0.526; "
        "room for 2 of 64 rollouts at full length (16,384 tokens)",
        "teacher: 1 vLLM server with gpu_memory_utilization 0.825; "
        "room for 3 of 64 rollouts at full length (16,384 tokens)",
    )


def test_what_does_not_fit_says_which_number_to_change() -> None:
    work = workload("Qwen3-1.7B", "Qwen3-8B", "teacher.quantization=fp8")
    assert refusal(work, L4, L4) == (
        "Qwen/Qwen3-1.7B and its teacher Qwen/Qwen3-8B do not fit on 2 GPUs: "
        "GPU 0 can give 20.2 GiB, and needed are 22.6 (trainer 12.9, student 9.7)\n"
        "Any one of these makes it fit:\n"
        "  rollout.max_context_window: 25600\n"
        "  3 GPUs instead of 2\n"
        "  GPUs with 4 GB more"
    )
    assert plan(work.with_settings({"rollout.max_context_window": 25600}), L4, L4)
    assert refusal(work.with_settings({"rollout.max_context_window": 26624}), L4, L4)


def test_the_reference_project_wants_more_than_one_gpu_of_80_gb() -> None:
    assert refusal(workload("Qwen3-8B", "Qwen3-32B"), H100) == (
        "Qwen/Qwen3-8B and its teacher Qwen/Qwen3-32B do not fit on 1 GPU: "
        "GPU 0 can give 77.4 GiB, and needed are 133.6 (trainer 35.8, student 23.9, teacher 73.9)\n"
        "Any one of these makes it fit:\n"
        "  2 GPUs instead of 1\n"
        "  a GPU with 60 GB more"
    )


def test_a_quantized_teacher_is_advised_where_that_is_enough() -> None:
    work = workload("Qwen3-4B", "Qwen3-32B", "rollout.max_context_window=8192")
    assert refusal(work, L40S, L40S).splitlines()[1:] == [
        "Any one of these makes it fit:",
        "  teacher.quantization: fp8",
        "  3 GPUs instead of 2",
        "  GPUs with 28 GB more",
    ]


def test_settings_that_help_only_together_stand_in_one_line() -> None:
    work = workload("Qwen3-4B", "Qwen3-32B", "trainer.activation_checkpointing=false")
    changes = "trainer.activation_checkpointing: true and teacher.quantization: fp8"
    assert refusal(work, L40S, L40S).splitlines()[1:] == [
        "Any one of these makes it fit:",
        f"  {changes} and rollout.max_context_window: 23552",
    ]
    # Checkpointing is on here, so it is left out.
    work = workload("Qwen3-4B", "Qwen3-32B")
    assert refusal(work, L40S, L40S).splitlines()[1:] == [
        "Any one of these makes it fit:",
        "  teacher.quantization: fp8 and rollout.max_context_window: 23552",
        "  3 GPUs instead of 2",
        "  GPUs with 32 GB more",
    ]


def test_micro_batches_shrink_to_the_window_and_with_it() -> None:
    work = workload(
        "Qwen3-4B",
        "Qwen3-8B",
        "teacher.quantization=fp8",
        "trainer.max_tokens_per_micro_batch=32768",
    )
    assert refusal(work, L4, L4, L4).splitlines()[1:] == [
        "Any one of these makes it fit:",
        "  rollout.max_context_window: 26624 and trainer.max_tokens_per_micro_batch: 26624",
        "  GPUs with 4 GB more",
    ]
    work = workload("Qwen3-8B", "Qwen3-8B", "trainer.max_tokens_per_micro_batch=65536")
    assert refusal(work, L40S, L40S, L40S).splitlines()[1:] == [
        "Any one of these makes it fit:",
        "  trainer.max_tokens_per_micro_batch: 32768",
        "  GPUs with 12 GB more",
    ]


def test_full_fine_tuning_of_8b_is_too_much_for_one_gpu_however_many_there_are() -> None:
    assert refusal(workload("Qwen3-8B", "Qwen3-32B", "model.tuning=full"), *[H100] * 8) == (
        "Qwen/Qwen3-8B and its teacher Qwen/Qwen3-32B do not fit on 8 GPUs: "
        "GPU 0 can give 77.4 GiB, and needed are 162.9 (trainer 162.9)\n"
        "Any one of these makes it fit:\n"
        "  model.tuning: lora\n"
        "  trainer.num_ranks: 4\n"
        "  GPUs with 88 GB more"
    )


def test_where_nothing_helps_nothing_is_advised() -> None:
    huge = figures("Qwen3-32B", num_hidden_layers=640)
    work = replace(workload("Qwen3-8B", "Qwen3-32B"), student=huge, teacher=huge)
    assert refusal(work, L4).splitlines()[1:] == ["No setting makes it fit; take smaller models"]


def test_a_teacher_too_big_for_a_gpu_is_cut_over_two() -> None:
    work = workload(
        "Qwen3-4B",
        "Qwen3-32B",
        "rollout.max_context_window=8192",
        "trainer.max_tokens_per_micro_batch=8192",
    )
    assert gpus_of(plan(work, *[L40S] * 8)) == {
        "trainer": ((0,),),
        "student": ((1,), (2,), (3,)),
        "teacher": ((4, 5), (6, 7)),
    }
    assert gpus_of(plan(work, *[L40S] * 3)) == {
        "trainer": ((0,),),
        "student": ((0,),),
        "teacher": ((1, 2),),
    }


def test_resources_say_how_many_gpus_a_role_has() -> None:
    work = workload("Qwen3-8B", "Qwen3-32B", "resources.student.gpus=2", "resources.teacher.gpus=4")
    assert gpus_of(plan(work, *[H100] * 8)) == {
        "trainer": ((0,),),
        "student": ((1,), (2,)),
        "teacher": ((3,), (4,), (5,), (6,)),
    }
    two_servers = work.with_settings({"teacher.replicas": 2})
    assert gpus_of(plan(two_servers, *[H100] * 8))["teacher"] == ((3, 4), (5, 6))


def test_gpus_that_were_given_to_one_role_are_not_shared() -> None:
    work = workload("Qwen3-8B", "Qwen3-8B", "teacher.quantization=fp8")
    shared = {"trainer": ((0,),), "student": ((0,),), "teacher": ((1,), (2,))}
    assert gpus_of(plan(work, H100, L4, L4)) == shared
    own = workload("Qwen3-8B", "Qwen3-8B", "teacher.quantization=fp8", "resources.teacher.gpus=1")
    assert refusal(own, H100, L4, L4).splitlines()[0] == (
        "Qwen/Qwen3-8B and its teacher Qwen/Qwen3-8B do not fit on 3 GPUs: "
        "GPU 1 can give 20.2 GiB, and needed are 23.1 (student 23.1)"
    )


def test_resources_of_config_yml_are_taken() -> None:
    settings = ["resources.teacher.gpus=2", "rollout.concurrency=10"]
    work = workload("Qwen3-8B", "Qwen3-32B", *settings)
    roles: tuple[Role, ...] = ("trainer", "student", "teacher")
    assert [work.num_gpus(role) for role in roles] == [1, 1, 2]
    assert work.num_rollouts == 10


@pytest.mark.parametrize(
    ("num_gpus", "settings", "message"),
    [
        (
            2,
            ["resources.teacher.gpus=1"],
            "resources asks for 3 GPUs (trainer 1, student 1, teacher 1), and this machine has 2; "
            "without resources the roles share what there is",
        ),
        (
            5,
            ["resources.teacher.gpus=3", "teacher.replicas=2"],
            "resources.teacher.gpus is 3, which is no multiple of 2 replicas; "
            "set one of them so that each gets as many GPUs",
        ),
        (
            2,
            ["engine.replicas=4"],
            "the servers that are asked for (student 4) and the trainer need a GPU each, "
            "and this machine has 2; ask for fewer replicas",
        ),
    ],
)
def test_what_no_plan_can_follow_is_refused(
    num_gpus: int, settings: list[str], message: str
) -> None:
    assert refusal(workload("Qwen3-8B", "Qwen3-32B", *settings), *[H100] * num_gpus) == message


def test_a_fraction_that_the_user_sets_is_used_and_checked() -> None:
    work = workload("Qwen3-8B", "Qwen3-8B", "engine.gpu_memory_utilization=0.8")
    made = plan(work, H100, H100, H100)
    fractions = [item.server.gpu_memory_utilization for item in made.roles if item.server]
    assert fractions == [0.8, 0.8]
    # 0.8 of 78.9 GiB does not hold Qwen3-32B with a KV cache; planned, it does.
    work = workload("Qwen3-8B", "Qwen3-32B", "engine.gpu_memory_utilization=0.8")
    assert refusal(work, H100, H100, H100).splitlines() == [
        "Qwen/Qwen3-8B and its teacher Qwen/Qwen3-32B do not fit on 3 GPUs: "
        "GPU 2 can give 65.4 GiB, and needed are 73.9 (teacher 73.9)",
        "Any one of these makes it fit:",
        "  engine.gpu_memory_utilization: null",
        "  teacher.quantization: fp8",
        "  4 GPUs instead of 3",
        "  GPUs with 12 GB more",
    ]


def test_local_engines_are_on_the_trainers_gpu() -> None:
    work = workload("Qwen3-4B", "Qwen3-8B", student_engine="local")
    made = plan(work, H100, H100)
    assert gpus_of(made) == {"trainer": ((0,),), "student": ((0,),), "teacher": ((1,),)}
    assert "student: in this process, with a KV cache for one rollout at full length" in (
        made.lines()
    )


def test_a_role_that_runs_elsewhere_takes_no_gpu() -> None:
    work = workload("Qwen3-8B", "Qwen3-32B", teacher_engine="url")
    assert gpus_of(plan(work, H100, H100)) == {"trainer": ((0,),), "student": ((1,),)}
    assert gpus_of(plan(work, H100)) == {"trainer": ((0,),), "student": ((0,),)}


def test_of_gpus_of_two_sizes_each_role_gets_one_that_holds_it() -> None:
    work = workload("Qwen3-1.7B", "Qwen3-32B")
    assert gpus_of(plan(work, H100, L4, L4)) == {
        "trainer": ((1,),),
        "student": ((2,),),
        "teacher": ((0,),),
    }


def test_a_gpu_of_unknown_size_and_none_at_all_cannot_be_planned_for() -> None:
    work = workload("Qwen3-4B", "Qwen3-8B")
    with pytest.raises(ModelError) as error:
        make_plan(work, Devices(gpus=(replace(L4, memory_mib=None),), reason=""))
    assert str(error.value) == (
        "nothing says how much memory NVIDIA L4 has, so nothing can be planned for it; "
        "nvidia-smi is asked for it"
    )
    with pytest.raises(ModelError) as error:
        make_plan(work, Devices(gpus=(), reason="no nvidia-smi"))
    assert str(error.value) == "there is no GPU to plan for (no nvidia-smi)"


def test_a_process_is_shown_its_gpus_by_the_names_that_this_one_was_given() -> None:
    cuda = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert device_variables([1, 2], [H100] * 3, environ={}) == {
        **cuda,
        "CUDA_VISIBLE_DEVICES": "1,2",
    }
    given = {"CUDA_VISIBLE_DEVICES": "5, GPU-aa, 3"}
    assert device_variables([1, 2], [H100] * 3, environ=given) == {
        **cuda,
        "CUDA_VISIBLE_DEVICES": "GPU-aa,3",
    }
    amd = Gpu(kind="rocm", name="AMD GPU gfx90402", memory_mib=196592)
    assert device_variables([0], [amd], environ={"ROCR_VISIBLE_DEVICES": "4"}) == {
        "ROCR_VISIBLE_DEVICES": "4"
    }


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    script = load_script()
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert script.with_tables(page) == page
    assert page.count("<!-- plan ") == len(script.EXAMPLES)


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_gpu_doc", ROOT / "scripts" / "make_gpu_doc.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_a_tied_model_is_served_with_a_head_of_its_own_where_all_weights_are_trained() -> None:
    tied = figures("Qwen3-1.7B")
    assert tied.is_tied
    weights = {}
    for tuning in ("lora", "full"):
        made = plan(workload("Qwen3-1.7B", "Qwen3-8B", f"model.tuning={tuning}"), H100, H100, H100)
        student = made.role("student")
        assert student is not None
        weights[tuning] = student.memory.weights
    assert weights["full"] - weights["lora"] == tied.vocab_size * tied.hidden_size * 2


def test_a_model_that_is_only_sampled_from_needs_neither_trainer_nor_teacher() -> None:
    training = workload("Qwen3-8B", "Qwen3-32B")
    assert refusal(training, H100).startswith("Qwen/Qwen3-8B and its teacher Qwen/Qwen3-32B do not")
    lines = plan(training.sampling("student", lora_rank=None), H100).lines()
    assert lines == (
        *table(
            """
GiB a GPU  GPU  weights  LoRA  optimizer  activations  KV cache  log-probs  overhead  total
student    0       15.3     ·          ·          1.8      55.9          ·       2.0   75.0
"""
        ),
        "GPU 0, NVIDIA H100 80GB HBM3: 75.0 of 79.6 GiB",
        "student: 1 vLLM server with gpu_memory_utilization 0.95; "
        "room for 12 of 256 rollouts at full length (32,768 tokens)",
    )


def test_a_teacher_that_samples_is_served_as_a_student_would_be() -> None:
    made = plan(workload("Qwen3-8B", "Qwen3-32B").sampling("teacher", lora_rank=None), H100)
    (teacher,) = made.roles
    assert teacher.server is not None
    # No place for the token beside a score, no log-probs of prompts; as many rollouts as come.
    assert (teacher.server.load.max_model_len, teacher.server.load.max_num_batched_tokens) == (
        32768,
        8192,
    )
    assert (teacher.server.load.max_num_seqs, teacher.memory.prompt_logprobs) == (256, 0)


def test_an_adapter_takes_its_slots_where_a_model_is_only_sampled_from() -> None:
    made = plan(workload("Qwen3-8B", "Qwen3-32B").sampling("student", lora_rank=16), H100)
    assert made.roles[0].memory.lora == pytest.approx(0.16 * GIB, rel=0.05)


def test_spare_gpus_become_servers_of_the_one_that_samples() -> None:
    work = workload("Qwen3-8B", "Qwen3-32B").sampling("student", lora_rank=None)
    assert gpus_of(plan(work, *[H100] * 4)) == {"student": ((0,), (1,), (2,), (3,))}
    # What the others would have is asked of nobody.
    given = workload(
        "Qwen3-8B", "Qwen3-32B", "resources.student.gpus=2", "resources.teacher.gpus=4"
    )
    alone = given.sampling("student", lora_rank=None)
    assert gpus_of(plan(alone, H100, H100)) == {"student": ((0,), (1,))}


def test_a_model_in_this_process_is_loaded_once_and_where_an_adapter_is_merged_twice() -> None:
    local = workload("Qwen3-8B", "Qwen3-32B", student_engine="local")
    bare, beside, merged = (
        plan(local.with_settings({"engine.dtype": dtype}).sampling("student", lora_rank=rank), H100)
        for dtype, rank in (("auto", None), ("bfloat16", 8), ("float32", 8))
    )
    weights = [made.roles[0].memory.weights for made in (bare, beside, merged)]
    assert weights == [weights[0], weights[0], 4 * weights[0]]
    assert weights[0] == pytest.approx(15.3 * GIB, rel=0.01)
    assert beside.roles[0].memory.lora == 2 * figures("Qwen3-8B").num_lora_parameters(8)


def test_a_single_model_that_does_not_fit_is_named_alone() -> None:
    work = workload("Qwen3-8B", "Qwen3-32B").sampling("teacher", lora_rank=None)
    assert refusal(work, L4).splitlines()[0] == (
        "Qwen/Qwen3-32B does not fit on 1 GPU: GPU 0 can give 20.2 GiB, and needed are 72.2 "
        "(teacher 72.2)"
    )
    several = work.with_settings({"teacher.replicas": 3})
    assert refusal(several, H100, H100) == (
        "the servers that are asked for (teacher 3) need a GPU each, and this machine has 2; "
        "ask for fewer replicas"
    )


# A trainer of several GPUs


def test_each_rank_of_the_trainer_has_a_gpu_and_the_servers_share_the_rest() -> None:
    made = plan(workload("Qwen3-8B", "Qwen3-32B", "trainer.num_ranks=3"), *[H100] * 8)
    assert gpus_of(made) == {
        "trainer": ((0,), (1,), (2,)),
        "student": ((3,), (4,), (5,)),
        "teacher": ((6,), (7,)),
    }
    assert made.lines()[1] == (
        "trainer    0 | 1 | 2     15.3   0.3        1.0         16.6         ·          ·       "
        "2.7   35.8"
    )
    resources = "resources={trainer: {gpus: 2}, student: {gpus: 4}, teacher: {gpus: 2}}"
    assert gpus_of(plan(workload("Qwen3-8B", "Qwen3-32B", resources), *[H100] * 8)) == {
        "trainer": ((0,), (1,)),
        "student": ((2,), (3,), (4,), (5,)),
        "teacher": ((6,), (7,)),
    }


def test_full_fine_tuning_that_does_not_fit_on_one_gpu_is_cut_over_four() -> None:
    full = ("Qwen3-8B", "Qwen3-32B", "model.tuning=full")
    assert "needed are" in refusal(workload(*full), *[H100] * 8)
    made = plan(workload(*full, "trainer.num_ranks=4"), *[H100] * 8)
    trainer, one = made.role("trainer"), figures("Qwen3-8B")
    assert trainer is not None
    assert trainer.memory is not None
    assert trainer.memory.weights == one.num_parameters
    assert trainer.memory.optimizer == 2 * one.num_parameters
    whole = workload(*full, "trainer.num_ranks=4", "trainer.shard_weights=false")
    assert "  trainer.shard_weights: true" in refusal(whole, *[H100] * 8).split("\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["trainer.num_ranks=8"],
            "trainer.num_ranks is 8, a GPU each, and servers need 1 more; this machine has 8: "
            "lower it",
        ),
        (
            ["trainer.num_ranks=3", "engine.replicas=5"],
            "trainer.num_ranks is 3, a GPU each, and servers need 6 more; this machine has 8: "
            "lower it",
        ),
    ],
)
def test_more_ranks_than_gpus_are_refused(settings: list[str], message: str) -> None:
    assert refusal(workload("Qwen3-8B", "Qwen3-32B", *settings), *[H100] * 8) == message
