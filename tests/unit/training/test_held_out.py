import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import make_trajectory, tokenizer_folder
from rich.console import Console
from scripted_engine import ScriptedEngine

from rnow.browser.local_sites import LocalSites
from rnow.chat.template import ChatTemplate
from rnow.chat.vocabulary import Vocabulary
from rnow.config.load import LoadedConfig
from rnow.config.settings import Config
from rnow.engines.base import SampleRequest
from rnow.errors import DataError
from rnow.records import Prompt
from rnow.rollout.environment import Environment
from rnow.runs.beside import read_beside
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import trajectory_from_json
from rnow.training.held_out import HeldOut, held_out_evaluation, open_held_out, verdict_of
from rnow.training.monitor import Monitor

QUESTION = {"role": "user", "content": "Which company?"}


def make_environment(folder: Path, *metadata: dict[str, Any], eval_step: int) -> Environment:
    lines = [json.dumps({"messages": [QUESTION], "metadata": each}) for each in metadata]
    (folder / "val.jsonl").write_text("\n".join(lines))
    config = Config.model_validate(
        {
            "data": {"batch_size": 1},
            "model": {"path": "student"},
            "teacher": {"path": "teacher"},
            "trainer": {"num_epochs": 1, "eval_step": eval_step},
        }
    )
    return Environment(
        config=config,
        directory=folder,
        chat=ChatTemplate.load(tokenizer_folder(folder / "student", "qwen3")),
        vocabulary=Vocabulary(num_tokens=1, foreign_ids=(), unread={}, notices=()),
        tools=None,
        sites=LocalSites({}),
    )


async def held_out_of(environment: Environment) -> tuple[HeldOut, list[str]]:
    told: list[str] = []
    folder = environment.directory
    loaded = LoadedConfig(
        config=environment.config,
        file=folder / "config.yml",
        lines={},
        project_name=None,
        warnings=(),
        overrides=(),
    )
    opened = open_held_out(loaded, environment, log_file=folder / "tools.log", say=told.append)
    async with opened as held_out:
        return held_out, told


async def test_a_prompt_that_cannot_be_graded_is_found_before_the_run(tmp_path: Path) -> None:
    environment = make_environment(tmp_path, {"expected_answer": "Acme"}, {}, eval_step=2)
    with pytest.raises(DataError) as caught:
        await held_out_of(environment)
    assert str(caught.value) == (
        "val.jsonl:2: there is no metadata.expected_answer, without which an answer cannot be "
        "graded; add it, or take the line out"
    )


async def test_a_grader_that_is_not_there_is_found_before_the_run(tmp_path: Path) -> None:
    environment = make_environment(tmp_path, {"expected_answer": "Acme"}, eval_step=2)
    data = environment.config.data.model_copy(update={"grader": "same_city"})
    config = environment.config.model_copy(update={"data": data})
    with pytest.raises(DataError) as caught:
        await held_out_of(replace(environment, config=config))
    assert str(caught.value) == (
        f"{tmp_path}/config.yml: data.grader is 'same_city', but there is no rewards.py; write "
        "one, with @grader (from rnow.core) above the function same_city"
    )


async def test_without_evaluation_or_without_its_file_there_are_no_prompts(tmp_path: Path) -> None:
    held_out, told = await held_out_of(make_environment(tmp_path, {}, eval_step=0))
    assert (held_out.prompts, told) == ((), [])
    environment = make_environment(tmp_path, {}, eval_step=2)
    (tmp_path / "val.jsonl").unlink()
    assert (await held_out_of(environment))[0].prompts == ()


async def test_a_student_is_evaluated_first_every_so_often_and_last(tmp_path: Path) -> None:
    environment = make_environment(
        tmp_path, {"expected_answer": "Acme"}, {"expected_answer": "Velora"}, eval_step=2
    )
    chat = environment.chat

    def say_acme(request: SampleRequest, turn: int) -> list[int]:
        return [*chat.encode("Acme"), chat.end_of_turn_id]

    engine = ScriptedEngine(say_acme)
    run = RunDirectory(tmp_path / "run")
    run.open()
    held_out, told = await held_out_of(environment)
    assert told == ["answers are graded by same_text"]
    evaluate = held_out_evaluation(
        environment,
        engine,
        Monitor(Console(quiet=True), run=run, num_steps=5),
        held_out,
        num_steps=5,
    )
    figures = [await evaluate(step) for step in range(6)]
    run.close()
    half = {"eval/accuracy": 0.5, "eval/format_ok": 1.0, "eval/failed": 0, "eval/ungraded": 0}
    assert figures == [half, {}, half, {}, half, half]
    lines = [json.loads(line) for line in run.evals_file.read_text().splitlines()]
    assert [(line["step"], line["accuracy"], line["n"]) for line in lines] == [
        (step, 0.5, 2) for step in (0, 2, 4, 5)
    ]
    # Greedily, by the weights of that step, and never as a rollout of a training step.
    assert {request.temperature for request in engine.samples} == {0.0}
    assert [request.policy_version for request in engine.samples[::2]] == [0, 2, 4, 5]
    assert {request.session for request in engine.samples} == {"-1.0.0", "-1.1.0"}
    # What was said is kept, with its grade.
    for step in (0, 2, 4, 5):
        kept = read_beside(run.beside("eval", step))
        assert [
            (line["prompt"], line["right"], line["extracted"], line["expected"]) for line in kept
        ] == [
            (0, True, "Acme", "Acme"),
            (1, False, "Acme", "Velora"),
        ]
        assert trajectory_from_json(kept[0]).num_actions == len(say_acme(engine.samples[0], 0))


async def test_rollouts_of_training_are_graded_where_held_out_ones_are(tmp_path: Path) -> None:
    environment = make_environment(tmp_path, {"expected_answer": "Acme"}, eval_step=2)
    held_out, _ = await held_out_of(environment)
    ids = [5, *environment.chat.encode("Acme")]
    said = make_trajectory(ids, [False] + [True] * (len(ids) - 1))

    def entry(metadata: dict[str, Any], **more: Any) -> Prompt:
        return Prompt(index=0, line=1, messages=(), tools=None, metadata=metadata, **more)

    entries = [
        entry({"expected_answer": "Acme"}),
        entry({"expected_answer": "Velora"}),
        entry({}),
        entry({"expected_answer": "Acme"}, grader="not_there"),
        entry({"expected_answer": "Acme"}, rewards=("costs_money",)),
    ]
    verdict = verdict_of(held_out, environment)
    assert [await verdict(each, said) for each in entries] == [True, False, None, None, None]
    off = environment.config.data.model_copy(update={"grade_rollouts": False})
    quiet = replace(environment, config=environment.config.model_copy(update={"data": off}))
    for other in (
        verdict_of(held_out, quiet),
        verdict_of(replace(held_out, prompts=()), environment),
    ):
        assert await other(entries[0], said) is None
