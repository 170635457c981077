"""Graders of a project in their real process, with graders that do all that they should not do."""

import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from builders import make_trajectory, read_prompts, tokenizer_folder

from rnow.chat.template import ChatTemplate
from rnow.config.load import load_config
from rnow.errors import DataError, GradingError, RolloutError, ToolDefinitionError
from rnow.evaluation.attempts import evaluate
from rnow.evaluation.grading import Grading, open_grading
from rnow.records import Prompt, Trajectory
from rnow.rollout.attempt import Attempt
from rnow.tools.graders import Grade

CONFIG = """\
data:
  batch_size: 1
  grader: {grader}
model: {{path: student}}
teacher: {{path: teacher}}
trainer: {{num_epochs: 1}}
rollout: {{reward_timeout: 20}}
"""

GRADERS = """
import os, time
from rnow.core import grader

print("on standard output nobody listens")

@grader(label="CITY")
async def same_city(expected: str, answered: str) -> bool:
    return expected.casefold() == answered.casefold()

def boxed(answer, metadata):
    return answer.partition(metadata["mark"])[2] or None

@grader(extract=boxed)
def after_mark(expected, answered):
    return expected == answered

@grader
def raises(expected: str, answered: str, metadata: dict) -> bool:
    raise KeyError(metadata["task_name"])

@grader
def leaves(expected: str, answered: str) -> bool:
    raise SystemExit(3)

@grader
def share(expected: str, answered: str):
    return 0.7

@grader
def cannot_say(expected: str, answered: str):
    return None

@grader(extract=len)
def counts(expected: str, answered: str) -> bool:
    return True

@grader(timeout=0.5)
def hangs(expected: str, answered: str) -> bool:
    if answered != expected:
        time.sleep(1000)
    return True

@grader
def dies(expected: str, answered: str) -> bool:
    os._exit(9)
"""


def entry(expected: str | None = "Bern", **fields: Any) -> dict[str, Any]:
    metadata = {"task_name": "capital", "mark": "=>"}
    if expected is not None:
        metadata["expected_answer"] = expected
    question = {"role": "user", "content": "Which city?"}
    return {"messages": [question], "metadata": metadata, **fields}


def make_project(
    folder: Path, *entries: dict[str, Any], code: str | None = GRADERS, grader: str = "same_city"
) -> tuple[Prompt, ...]:
    (folder / "config.yml").write_text(CONFIG.format(grader=grader))
    (folder / "val.jsonl").write_text("\n".join(json.dumps(each) for each in entries))
    if code is not None:
        (folder / "rewards.py").write_text(code)
    return read_prompts(folder / "val.jsonl").prompts


@asynccontextmanager
async def opened(folder: Path, prompts: tuple[Prompt, ...]) -> AsyncIterator[Grading]:
    loaded, log = load_config(folder), folder / "rewards.log"
    async with open_grading(loaded, folder, prompts, file="val.jsonl", log_file=log) as grading:
        yield grading


async def test_the_grader_of_the_documentation_serves_a_project_elsewhere(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    (code,) = re.findall(r"```python\n([^`]*@grader[^`]*)```", text)
    (config,) = re.findall(r"```yaml\n([^`]*grader:[^`]*)```", text)
    (other,) = re.findall(r"```json\n([^`]*\"grader\"[^`]*)```", text)
    assert len([line for line in code.splitlines() if line]) <= 10
    prompts = make_project(tmp_path, entry("City of Bern"), json.loads(other), code=code)
    whole = CONFIG.format(grader="x").replace("data:\n", config).replace("  grader: x\n", "")
    (tmp_path / "config.yml").write_text(whole)
    async with opened(tmp_path, prompts) as grading:
        right = await grading.grade(prompts[0], "I looked.\n**City:** bern.<|im_end|>")
        wrong = await grading.grade(prompts[0], "CITY: Basel")
        unasked = await grading.grade(prompts[0], "<think>CITY: Bern</think>It is Bern.")
        as_text = await grading.grade(prompts[1], " bern\n")
        constants = await grading.constants(prompts)
    assert right == Grade(correct=True, extracted="bern")
    assert wrong == Grade(correct=False, extracted="Basel")
    assert unasked == Grade(correct=False, extracted=None)
    assert as_text == Grade(correct=True, extracted="bern")
    # "Bern" answers both questions, each by the grader of its own entry.
    assert constants.right == {0: {"City of Bern"}, 1: {"Bern"}}


async def test_each_entry_is_graded_by_its_own_grader_or_that_of_the_config(tmp_path: Path) -> None:
    prompts = make_project(
        tmp_path, entry(), entry(grader="after_mark"), entry("bern", grader="same_text")
    )
    async with opened(tmp_path, prompts) as grading:
        grades = [await grading.grade(prompt, "CITY: BERN") for prompt in prompts]
        marked = await grading.grade(prompts[1], "so => Bern")
        constants = await grading.constants(prompts)
    assert grades == [
        Grade(correct=True, extracted="BERN"),
        Grade(correct=False, extracted=None),
        Grade(correct=False, extracted="CITY: BERN"),
    ]
    assert marked == Grade(correct=True, extracted="Bern")
    both = frozenset({"Bern", "bern"})
    assert constants.right == {0: both, 1: {"Bern"}, 2: both}
    assert constants.accuracy(prompts) == 1.0


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("raises", "KeyError: 'capital'"),
        ("leaves", "SystemExit: 3"),
        ("share", "returned 0.7, which is neither True nor False"),
        ("cannot_say", "returned None, which is neither True nor False"),
        ("counts", "its extract gave 5, which is neither a text nor None"),
        ("hangs", "took longer than 0.5 s"),
        ("dies", "its process ended; see {log}"),
    ],
)
async def test_a_grader_without_a_verdict_is_told_and_the_next_answers_are_graded(
    tmp_path: Path, name: str, error: str
) -> None:
    prompts = make_project(tmp_path, entry(grader=name), entry())
    async with opened(tmp_path, prompts) as grading:
        with pytest.raises(GradingError) as caught:
            await grading.grade(prompts[0], "Basel")
        assert str(caught.value) == (
            f"no verdict from the grader {name}: " + error.format(log=tmp_path / "rewards.log")
        )
        assert (await grading.grade(prompts[1], "CITY: Bern")).correct


async def test_an_answer_without_a_verdict_is_no_answer_and_is_counted(tmp_path: Path) -> None:
    entries = [entry(grader="hangs" if number == 2 else None) for number in range(6)]
    prompts = make_project(tmp_path, *entries)
    chat = ChatTemplate.load(tokenizer_folder(tmp_path / "model", "qwen3"))

    async def roll(attempt: Attempt) -> Trajectory:
        ids = [1, *chat.encode("CITY: Bern"), chat.end_of_turn_id]
        return make_trajectory(ids, [False] + [True] * (len(ids) - 1), id=attempt.id)

    async with opened(tmp_path, prompts) as grading:
        how = {"grading": grading, "policy_version": 0, "chat": chat, "concurrency": 3}
        evaluation = await evaluate(prompts, roll, **how)
        with pytest.raises(RolloutError) as caught:
            await evaluate(prompts[:3], roll, **how)
    assert [answer.prompt.index for answer in evaluation.answers] == [0, 1, 3, 4, 5]
    assert (evaluation.accuracy, evaluation.num_failed, evaluation.num_ungraded) == (1.0, 0, 1)
    reason = "no verdict from the grader hangs: took longer than 0.5 s"
    assert evaluation.failures == {reason: 1}
    assert evaluation.as_json()["constant"] == 1.0
    assert str(caught.value) == (
        "1 of 3 rollouts of held-out prompts have failed or could not be graded, and the others "
        f"would say little; 1 times because: {reason}"
    )


async def test_a_constant_answer_that_cannot_be_found_is_not_known(tmp_path: Path) -> None:
    prompts = make_project(tmp_path, entry(grader="raises"), entry(), entry("Basel"))
    async with opened(tmp_path, prompts) as grading:
        constants = await grading.constants(prompts)
        assert constants.accuracy(prompts) is None
        assert constants.notes == (
            "capital: the constant answer is not known: no verdict from the grader raises, "
            "same_city: KeyError: 'capital'",
        )


async def test_comparing_ends_at_its_limit_where_a_grader_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = make_project(tmp_path, entry(), entry("Basel"), grader="hangs")
    monkeypatch.setattr("rnow.evaluation.grading.COMPARE_LIMIT_S", 0.5)
    async with opened(tmp_path, prompts) as grading:
        started = time.monotonic()
        (note,) = (await grading.constants(prompts)).notes
        assert time.monotonic() - started < 20
    assert re.fullmatch(
        r"capital: the constant answer is not known: no verdict from the grader hangs: "
        r"took longer than 0\.[45] s",
        note,
    )


async def test_names_that_are_not_there_are_told_with_file_line_and_remedy(tmp_path: Path) -> None:
    config = tmp_path / "config.yml"
    has = "same_text, same_city, after_mark, raises, leaves, share, cannot_say, counts, hangs, dies"
    prompts = make_project(tmp_path, entry(), entry(grader="best"), grader="same_cty")
    with pytest.raises(DataError) as caught:
        async with opened(tmp_path, prompts):
            pass
    assert str(caught.value) == (
        f"{config}:3: data.grader is 'same_cty', which is no grader of rewards.py; did you mean "
        "'same_city'?\n"
        "val.jsonl:2: grader is 'best', which is no grader of rewards.py; put @grader (from "
        f"rnow.core) above a function of that name, or take one that is there: {has}"
    )
    (tmp_path / "rewards.py").unlink()
    with pytest.raises(DataError) as caught:
        async with opened(tmp_path, prompts[:1]):
            pass
    assert str(caught.value) == (
        f"{config}:3: data.grader is 'same_cty', but there is no rewards.py; write one, "
        "with @grader (from rnow.core) above the function same_cty"
    )


async def test_a_function_that_cannot_be_a_grader_is_told_with_its_line(tmp_path: Path) -> None:
    code = "from rnow.core import grader\n\n@grader\ndef near(a: str) -> bool:\n    return True\n"
    prompts = make_project(tmp_path, entry(), code=code)
    with pytest.raises(ToolDefinitionError) as caught:
        async with opened(tmp_path, prompts):
            pass
    assert str(caught.value) == (
        "rewards.py:3: Grader 'near' must take (expected: str, answered: str), and one more where "
        "it wants the entry's metadata; it takes (a)."
    )


async def test_where_nothing_is_graded_by_rewards_py_it_is_not_imported(tmp_path: Path) -> None:
    prompts = make_project(
        tmp_path, entry(grader="same_text"), entry(None), code="raise SystemExit(1)"
    )
    async with opened(tmp_path, prompts) as grading:
        assert (await grading.grade(prompts[0], "BERN")).correct
