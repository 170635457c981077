"""How long roles work, against rates measured and worked out by hand; where spare GPUs go."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rnow.config.load import load_config
from rnow.errors import ConfigError
from rnow.plan.device_table import DEVICES, device_or_other, find_device
from rnow.plan.devices import Devices, Gpu
from rnow.plan.figures import ModelFigures, read_figures
from rnow.plan.make import make_plan
from rnow.plan.pace import (
    Gang,
    StepTokens,
    assumed_tokens,
    student_s,
    teacher_s,
    token_s,
    trainer_s,
)
from rnow.plan.records import Plan, StepTimes
from rnow.plan.workload import Workload

ROOT = Path(__file__).resolve().parents[3]
H100 = Gpu(kind="cuda", name="NVIDIA H100 80GB HBM3", memory_mib=81559)


def figures(name: str) -> ModelFigures:
    file = ROOT / "tests" / "fixtures" / "configs" / f"{name}.json"
    return read_figures(name, json.loads(file.read_text()))


def gang(name: str, **settings: Any) -> Gang:
    device = find_device("NVIDIA H100 80GB HBM3")
    assert device is not None
    return Gang(figures=figures(name), device=device, **settings)


def workload(student: str, teacher: str, *settings: str, **others: Any) -> Workload:
    config = load_config(ROOT, overrides=list(settings)).config
    return Workload(config=config, student=figures(student), teacher=figures(teacher), **others)


def plan(work: Workload, num_gpus: int, *, a_node: int = 64) -> Plan:
    gpus = tuple(replace(H100, node=index // a_node) for index in range(num_gpus))
    return make_plan(work, Devices(gpus=gpus, reason=""))


def shares(made: Plan) -> dict[str, int]:
    return {item.role: item.num_servers for item in made.roles}


# 16.4 GB of weights and 147 kB of cache a token at 85 % of 3.35 TB/s, and 2.3 ms.
@pytest.mark.parametrize(("batch", "ms"), [(1, 8.6), (4, 10.1), (16, 16.3), (32, 24.6)])
def test_a_sampled_token_reads_the_weights_and_what_all_remember(batch: int, ms: float) -> None:
    assert 1e3 * token_s(gang("Qwen3-8B"), batch=batch, context=10_000) == pytest.approx(ms, 0.02)


# 31.2 G weights at 66 % and attention at 51 % of 989 TFLOP/s.
@pytest.mark.parametrize(("length", "tokens_s"), [(8192, 8900), (20_000, 7200), (32_768, 6000)])
def test_scoring_is_bound_by_products_and_attention(length: int, tokens_s: float) -> None:
    tokens = StepTokens(rollouts=16, concurrency=16, sampled=0.2 * length, read=0.8 * length)
    assert tokens.all / teacher_s(gang("Qwen3-32B"), tokens) == pytest.approx(tokens_s, 0.03)


# Measured on an H100 (docs/gpu.md): 10 % of the tokens sampled.
@pytest.mark.parametrize(
    ("name", "length", "tokens_s"),
    [
        ("Qwen3-8B", 32_768, 4936),
        ("Qwen3-8B", 8192, 6784),
        ("Qwen3-4B", 32_768, 6219),
        ("Qwen3-4B", 16_384, 8129),
    ],
)
def test_an_update_takes_what_was_measured(name: str, length: int, tokens_s: float) -> None:
    tokens = StepTokens(rollouts=1, concurrency=1, sampled=0.1 * length, read=0.9 * length)
    estimated = tokens.all / trainer_s(gang(name), tokens, tuning="lora")
    assert estimated == pytest.approx(tokens_s, 0.12)


def test_a_mixture_reads_the_experts_that_its_batch_meets() -> None:
    mixture, dense = gang("Qwen3-30B-A3B"), gang("Qwen3-32B")
    one = token_s(mixture, batch=1, context=100)
    many = token_s(mixture, batch=256, context=100)
    # 3.35 of 30.5 G weights for one text; for 256 nearly all, as a dense model of the size has.
    read = 2 * (30_532_122_624 - 28_991_029_248 * 120 / 128)
    cached = 100 * 48 * 2 * 4 * 128 * 2
    assert one == pytest.approx(0.0023 + (read + cached) / (0.85 * 3.35e12))
    assert many == pytest.approx(token_s(dense, batch=256, context=100), rel=0.5)
    tokens = StepTokens(rollouts=16, concurrency=16, sampled=2000, read=8000)
    assert teacher_s(mixture, tokens) < 0.4 * teacher_s(dense, tokens)


def test_rollouts_for_which_a_cache_has_no_room_wait() -> None:
    tokens = StepTokens(rollouts=64, concurrency=64, sampled=4000, read=18_000)
    roomy, full = (gang("Qwen3-8B", max_tokens=size) for size in (11_000 * 64, 11_000 * 8))
    assert student_s(full, tokens) > 1.5 * student_s(roomy, tokens)
    assert student_s(gang("Qwen3-8B"), tokens) == student_s(roomy, tokens)


def test_a_rollout_is_no_longer_than_its_window() -> None:
    settings: dict[str, Any] = {"max_turns": 3, "max_tokens": 500, "max_result_tokens": 1000}
    # 3 turns of 400 tokens, 2 results of 1,000
    assert assumed_tokens(**settings, room=9000) == (1200, 2000)
    assert assumed_tokens(**settings, room=1800) == (800, 1000)
    # one turn, a result and half of another turn's 1,400
    assert assumed_tokens(**settings, room=1100) == (600, 500)
    assert assumed_tokens(**settings, room=300) == (300, 0)
    assert assumed_tokens(**settings, room=-5) == (0, 0)


@pytest.mark.parametrize("room", [0, 300, 1000, 5000, 50_000])
def test_more_turns_never_make_fewer_tokens(room: int) -> None:
    found = [
        assumed_tokens(max_turns=turns, max_tokens=500, max_result_tokens=1000, room=room)
        for turns in (1, 2, 4, 8, 100)
    ]
    assert [sorted(part) for part in zip(*found, strict=True)] == [
        list(part) for part in zip(*found, strict=True)
    ]
    assert all(sum(one) <= room for one in found)


def test_a_step_is_the_longer_engine_and_then_the_update() -> None:
    times = StepTimes(seconds={"student": 60, "teacher": 40, "trainer": 50})
    assert (times.step_s, times.bound) == (110, "student")
    shared = StepTimes(
        seconds={"student": 60, "teacher": 40, "trainer": 50},
        sharing=frozenset({"student", "teacher"}),
    )
    assert shared.step_s == 150


def test_devices_are_known_by_their_drivers_names() -> None:
    assert [device.tflops for device in DEVICES if device.name == "H100"] == [989]
    found = find_device("NVIDIA H100 PCIe")
    assert found is not None
    assert found.tb_s == 2.0
    other, phrase = device_or_other("Some GPU 9000")
    assert (other.name, phrase) == ("A100", "Some GPU 9000 is in no table: as an A100")


def test_spare_gpus_go_to_the_engine_that_the_other_waits_for() -> None:
    # 64 rollouts: 81 s and 70 s; even shares would leave one of them waiting.
    assert shares(plan(workload("Qwen3-8B", "Qwen3-32B"), 8)) == {
        "trainer": 1,
        "student": 4,
        "teacher": 3,
    }
    # A mixture scores in a fifth of the time, and one of it is enough.
    assert shares(plan(workload("Qwen3-8B", "Qwen3-30B-A3B"), 8)) == {
        "trainer": 1,
        "student": 6,
        "teacher": 1,
    }
    # Few rollouts wait for each other's tokens whatever there is.
    few = workload("Qwen3-8B", "Qwen3-32B", "data.batch_size=1", "data.group_size=2")
    made = plan(few, 8)
    assert shares(made) == {"trainer": 1, "student": 2, "teacher": 1}
    assert made.notes == (
        "4 of 8 GPUs are not used: no server that fits there would shorten a step by more than 1 %",
    )


def test_the_reference_run_on_8_16_and_64_gpus() -> None:
    """With as many ranks as are worth it: what they bring, and where the student bounds a step."""
    seen = {}
    for num_gpus in (8, 16, 64):
        made = plan(workload("Qwen3-8B", "Qwen3-32B", max_ranks=64), num_gpus, a_node=8)
        seen[num_gpus] = (*shares(made).values(), round(made.times.step_s), made.times.bound)
        assert made.gpu_hours == made.times.step_s * num_gpus / 3600
    # ranks, student's servers, teacher's servers, seconds of a step
    assert seen == {
        8: (3, 3, 2, 198, "teacher"),
        16: (8, 5, 3, 106, "student"),
        64: (31, 26, 6, 49, "student"),
    }


def test_32b_from_a_mixture_of_235b_has_its_weights_in_parts() -> None:
    made = plan(
        workload(
            "Qwen3-32B", "Qwen3-235B-A22B", "trainer.num_ranks=4", "trainer.shard_weights=true"
        ),
        32,
        a_node=8,
    )
    trainer = made.role("trainer")
    assert trainer is not None
    assert (trainer.num_servers, trainer.memory and trainer.memory.weights) == (4, 16_381_061_632)
    teacher = made.role("teacher")
    assert teacher is not None
    # A server is never over two machines.
    assert {made.gpus[gpu].node for gpu in teacher.gpus} == {3}


def test_full_fine_tuning_of_8b_takes_eight_ranks_of_80_gb() -> None:
    work = workload("Qwen3-8B", "Qwen3-32B", "model.tuning=full", "trainer.num_ranks=8")
    trainer = plan(work, 16, a_node=8).role("trainer")
    assert trainer is not None
    assert (trainer.num_servers, trainer.memory and trainer.memory.weights) == (8, 4_095_367_680)
    with pytest.raises(ConfigError, match=r"needed are 162\.9 \(trainer 162\.9\)"):
        plan(work.with_settings({"trainer.num_ranks": 1}), 16)


def test_no_server_is_cut_over_two_machines() -> None:
    work = workload("Qwen3-8B", "Qwen3-235B-A22B")
    with pytest.raises(ConfigError, match="do not fit on 16 GPUs"):
        plan(work, 16, a_node=4)
    made = plan(work, 16, a_node=8)
    teacher = made.role("teacher")
    assert teacher is not None
    assert teacher.gpus == tuple(range(8, 16))
