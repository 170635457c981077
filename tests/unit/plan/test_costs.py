"""What a run will take: every number worked out by hand, and what it is said to be from."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rnow.config.settings import Config
from rnow.plan.costs import Costs, Estimate, Work, estimate_costs
from rnow.plan.figures import read_figures
from rnow.plan.measured import Measured
from rnow.runs.folder import RunDirectory
from rnow.runs.measured import measured_steps

# 2 · (4 · 8·8 + 3 · 8·16) of the layers, 2 · 100·8 of the tables, 2 · 16 + 8 of the norms: 2920.
FIGURES = read_figures(
    "student",
    {
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    },
)
WORK = Work(
    num_steps=10,
    num_rollouts=640,
    num_evaluations=3,
    num_held_out=32,
    concurrency=32,
    max_turns=3,
    max_tokens=500,
    max_result_tokens=1000,
    max_context_window=8192,
    prompt_tokens=100,
    tuning="lora",
    lora_rank=4,
    num_checkpoints=2,
    keep_trajectories_bytes=1e12,
    engine="vllm",
    gpu="NVIDIA H100 80GB HBM3",
    num_gpus=2,
    num_teacher_gpus=1,
    student=FIGURES,
    teacher=FIGURES,
)
MEASURED = {
    "rollout/trajectories": 64,
    "tokens/action": 6400.0,
    "tokens/total": 64000.0,
    "tool/seconds": 96.0,
    "time/rollout": 8.0,
    "time/teacher": 1.0,
    "time/update": 2.0,
    "time/step": 12.0,
}


NOTHING = Measured()


def measured(*lines: dict[str, float]) -> Measured:
    return Measured(counted=lines, timed=lines)


def test_before_any_step_all_is_assumed_and_says_so() -> None:
    assert FIGURES.num_parameters == 2920
    costs = estimate_costs(WORK, NOTHING)
    # 3 turns of 400 tokens; the prompt, and 2 results of 1000; 640 rollouts and 3 · 32.
    assert (costs.tokens_out.value, costs.tokens_in.value) == (736 * 1200, 736 * 2100)
    assert costs.tokens_out.basis == (
        "assumed 400 tokens a turn, 1000 a tool result and all 3 turns of a rollout"
    )
    # 64 rollouts in 2 waves of 1200 tokens, of 2 calls: 40 s + 4 s; the rest is nothing here.
    assert costs.step_s is not None
    assert costs.step_s.value == pytest.approx(44.0, rel=1e-3)
    assert costs.step_s.basis == (
        "assumed 60 tokens/s a rollout, 1 s a tool call; 35% of H100 from the device table"
    )
    # An evaluation of 32 prompts takes half of what 64 rollouts do.
    assert costs.total_s is not None
    assert costs.total_s.value == pytest.approx(10 * 44 + 3 * 22, rel=1e-3)
    assert costs.gpu_hours is not None
    assert costs.gpu_hours.value == pytest.approx(2 * 506 / 3600, rel=1e-3)
    assert costs.gpu_hours.basis == "2 GPUs for that time"
    # 2 layers · rank 4 · (7 matrices' inputs and outputs: 4 · 16 + 3 · 24) = 1088 floats; two
    # checkpoints of three each and one that is being written, two published versions, the model.
    assert costs.disk_bytes is not None
    assert costs.disk_bytes.value == 1088 * 4 * 12
    assert costs.journal_bytes.value == 640 * (20 * 1200 + 2 * 2100)
    assert costs.bound_by == "student"


def test_a_small_window_holds_no_more_than_it_can() -> None:
    costs = estimate_costs(replace(WORK, max_context_window=1900, num_evaluations=0), NOTHING)
    # 1800 tokens are left: two turns and the result between them.
    assert (costs.tokens_out.value, costs.tokens_in.value) == (640 * 800, 640 * (100 + 1000))
    assert costs.tokens_out.basis == (
        "assumed 400 tokens a turn, 1000 a tool result and the 2.0 of 3 turns that its window has "
        "room for"
    )


def test_more_turns_never_make_a_smaller_estimate() -> None:
    small = replace(WORK, max_context_window=1900)
    costs = [estimate_costs(replace(small, max_turns=turns), NOTHING) for turns in (1, 2, 3, 9, 99)]
    for found in (
        [one.tokens_out.value for one in costs],
        [one.tokens_in.value for one in costs],
        [one.journal_bytes.value for one in costs],
        [one.step_s.value for one in costs if one.step_s],
        [one.total_s.value for one in costs if one.total_s],
    ):
        assert found == sorted(found)
        assert len(found) == len(costs)


def test_measured_steps_take_the_place_of_assumptions() -> None:
    slow = {**MEASURED, "time/step": 100.0, "time/rollout": 96.0}
    costs = estimate_costs(replace(WORK, num_evaluations=0), measured(MEASURED, MEASURED, slow))
    assert costs.tokens_out.value == 640 * 100
    assert costs.tokens_in.value == 640 * 900
    assert costs.step_s is not None
    # The one in the middle; of its 8 s of rollouts 3 were spent in tools, 96 s by 32 at a time.
    assert (costs.step_s.value, costs.bound_by) == (12.0, "student")
    basis = "from 3 measured steps of this project"
    assert {costs.tokens_out.basis, costs.tokens_in.basis, costs.step_s.basis} == {basis}
    assert costs.total_s is not None
    assert costs.total_s.value == 120.0


def test_measured_steps_are_scaled_to_the_rollouts_of_this_run() -> None:
    costs = estimate_costs(replace(WORK, num_rollouts=1280, num_evaluations=0), measured(MEASURED))
    assert costs.step_s is not None
    assert costs.step_s.value == 24.0
    assert costs.step_s.basis == "from 1 measured step of this project"


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"tool/seconds": 300.0, "time/rollout": 12.0}, "tools"),
        ({"time/teacher": 60.0}, "teacher"),
        ({"time/step": 100.0}, "trainer"),
    ],
)
def test_what_a_step_waits_for_most_bounds_it(changes: dict[str, float], bound: str) -> None:
    step_s = MEASURED["time/step"] + changes.get("time/teacher", 0.0)
    costs = estimate_costs(WORK, measured({**MEASURED, "time/step": step_s, **changes}))
    assert costs.bound_by == bound


def test_of_what_nothing_is_known_there_is_no_number() -> None:
    costs = estimate_costs(replace(WORK, student=None), NOTHING)
    assert (costs.step_s, costs.total_s, costs.gpu_hours) == (None, None, None)
    assert (costs.disk_bytes, costs.bound_by) == (None, None)
    assert costs.short_lines()[1] == "planned: time not known"
    # Without a GPU there are no hours of one.
    assert estimate_costs(replace(WORK, num_gpus=0, gpu=None), NOTHING).gpu_hours is None


def test_the_plan_as_people_read_it() -> None:
    costs: Costs = estimate_costs(replace(WORK, keep_trajectories_bytes=1e6), measured(MEASURED))
    basis = "(from 1 measured step of this project)"
    assert costs.lines() == (
        "steps           10  (from the settings)",
        "rollouts        640, and 96 in evaluations  (from the settings)",
        f"tokens sampled  73.6 thousand  {basis}",
        f"tokens read     662 thousand  {basis}",
        "checkpoints     0.1 MB  (2 with AdamW's moments and room to write another, two published "
        "versions and the model, by the sizes of config.json)",
        "journal         1.0 MB  (assumed 20 bytes a sampled token and 2 a read one, at most "
        "trainer.keep_trajectories_gb)",
        f"time a step     12.0 s, bound by the student  {basis}",
        f"time in all     2 min 12 s  {basis}",
        "GPU hours       0.1  (2 GPUs for that time)",
    )
    assert costs.short_lines() == (
        f"planned: 640 rollouts, 73.6 thousand tokens sampled and 662 thousand read {basis}",
        f"planned: 2 min 12 s in all, 0.1 GPU hours, 12.0 s a step, bound by the student {basis}",
    )


def make_config(**rollout: Any) -> Config:
    return Config.model_validate(
        {
            "data": {"batch_size": 1},
            "model": {"path": "student"},
            "teacher": {"path": "teacher"},
            "trainer": {"num_epochs": 1},
            "rollout": rollout,
        }
    )


def make_run(folder: Path, config: Config, *lines: dict[str, Any]) -> None:
    run = RunDirectory(folder)
    folder.mkdir(parents=True)
    run.write_config(config.model_dump(mode="json"))
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))


PLACE = "vllm, 2 x NVIDIA H100 80GB HBM3"


def test_the_seconds_are_those_of_one_place() -> None:
    assert WORK.place == PLACE
    assert replace(WORK, gpu=None, num_gpus=0, engine="local").place == "local, cpu"
    assert estimate_costs(WORK, NOTHING).place == PLACE


def test_steps_are_measured_by_runs_with_the_same_models_and_rollouts(tmp_path: Path) -> None:
    config = make_config()
    assert measured_steps(tmp_path, config, place=PLACE) == NOTHING
    steps = tuple({"step": step, **MEASURED} for step in range(60))
    make_run(tmp_path / "runs" / "one", config, *steps[:3], {"step": 3, "trainer/skipped": 1.0})
    make_run(tmp_path / "runs" / "other", make_config(max_turns=9), *steps)
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "metrics.jsonl").write_text("{}\n")
    # The first was slow, for it was the first; one that was skipped measured nothing.
    found = measured_steps(tmp_path, config, place=PLACE)
    assert found == Measured(counted=steps[:3], timed=steps[1:3])
    assert found.basis(found.counted) == "from 3 measured steps of this project"
    assert found.basis(found.timed) == (
        "from 2 measured steps of this project, a run's first apart"
    )
    make_run(tmp_path / "runs" / "two", config, *steps)
    make_run(tmp_path / "runs" / "three", config, *steps)
    found = measured_steps(tmp_path, config, place=PLACE)
    assert found == Measured(counted=steps[-40:] + steps, timed=steps[-41:] + steps[1:])


def test_another_way_or_place_says_nothing_of_seconds(tmp_path: Path) -> None:
    steps = ({"step": 0, **MEASURED},)
    make_run(tmp_path / "runs" / "one", make_config(concurrency=3), *steps)
    counted = Measured(counted=steps)
    assert measured_steps(tmp_path, make_config(), place=PLACE) == counted
    alike = make_config(concurrency=3)
    assert measured_steps(tmp_path, alike, place=PLACE) == Measured(counted=steps, timed=steps)
    RunDirectory(tmp_path / "runs" / "one").write_plan({"place": "local, cpu"})
    assert measured_steps(tmp_path, alike, place=PLACE) == counted
    # Tokens were counted here, seconds are assumed: each is said.
    costs = estimate_costs(replace(WORK, num_evaluations=0), counted)
    assert costs.tokens_out == Estimate(value=64000, basis="from 1 measured step of this project")
    assert costs.step_s is not None
    assert costs.step_s.basis.startswith("assumed 60 tokens/s a rollout")


def test_a_step_that_was_held_up_does_not_count_and_slow_ones_do() -> None:
    def taking(seconds: float) -> dict[str, float]:
        return {**MEASURED, "time/step": seconds}

    def step_s(*seconds: float) -> float:
        return measured(*map(taking, seconds)).step_s(64)

    assert step_s(10.0, 30.0) == 20.0
    assert step_s(10.0, 12.0, 900.0) == 12.0
    # Of twenty the two shortest and the two longest: 2 to 17 on the average.
    assert step_s(*map(float, range(20))) == 9.5


def test_an_evaluation_takes_what_evaluations_took_even_a_runs_first() -> None:
    first = {**MEASURED, "eval/accuracy": 0.5, "time/eval": 7.0, "time/step": 19.0}
    lines = Measured(counted=(first, MEASURED, MEASURED), timed=(MEASURED, MEASURED))
    costs = estimate_costs(WORK, lines)
    assert costs.step_s is not None
    assert costs.total_s is not None
    assert (costs.step_s.value, costs.total_s.value) == (12.0, 10 * 12.0 + 3 * 7.0)


def test_where_rollouts_go_on_beside_the_update_the_step_is_as_long_as_it_was() -> None:
    beside = {**MEASURED, "time/rollout": 9.0, "time/update": 10.0, "time/step": 11.0}
    costs = estimate_costs(WORK, measured(beside))
    assert costs.step_s is not None
    assert (costs.step_s.value, costs.bound_by) == (11.0, "trainer")


RECORDED = sorted((Path(__file__).parents[2] / "fixtures" / "estimates").glob("*.jsonl"))


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_three_steps_of_a_recorded_run_tell_of_the_whole(file: Path) -> None:
    """Metrics of real runs on a busy machine, whose lengths and times are not even."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    evaluations = [line["time/eval"] for line in lines if "eval/accuracy" in line]
    work = replace(
        WORK,
        num_steps=len(lines),
        num_rollouts=int(sum(line["rollout/trajectories"] for line in lines)),
        num_evaluations=len(evaluations),
        num_held_out=0,
    )
    costs = estimate_costs(work, Measured(counted=tuple(lines[:3]), timed=tuple(lines[1:3])))
    assert costs.total_s is not None
    sampled = sum(line["tokens/action"] for line in lines)
    for said, was in (
        (costs.tokens_out.value, sampled),
        (costs.tokens_in.value, sum(line["tokens/total"] for line in lines) - sampled),
        (costs.total_s.value, sum(line["time/step"] for line in lines)),
    ):
        assert was / 1.5 <= said <= was * 1.5


def test_there_are_recorded_runs() -> None:
    assert [file.stem for file in RECORDED] == ["demo"]


def test_a_rollout_has_the_calls_of_the_turns_that_its_window_has_room_for() -> None:
    work = replace(WORK, max_turns=100, max_context_window=WORK.prompt_tokens + 40)
    assert work.calls_a_rollout == 0.0
    whole = replace(WORK, max_context_window=10**6)
    assert whole.calls_a_rollout == WORK.max_turns - 1
