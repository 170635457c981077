"""Answers to right or wrong, by the graders that a project names: no task is known here by name.

    an entry's `grader`, else data.grader ─▶ that function of rewards.py, in its process
                                   same_text ─▶ no rewards.py is needed

A grader that raises, hangs or says neither True nor False has graded nothing: that is a
GradingError, never a verdict.
"""

import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rnow.chat.conversation import conversation, split_thinking, turn_text
from rnow.chat.template import ChatTemplate
from rnow.config.load import LoadedConfig
from rnow.core.grader import GRADER_REGISTRY, same_text
from rnow.errors import DataError, GradingError, Problem, folded
from rnow.evaluation.constant_answers import ConstantAnswers, by_task, expected_of
from rnow.records import Prompt, Trajectory
from rnow.tools.graders import Grade, Graders, LocalGraders
from rnow.tools.rewards import RewardRunner, RewardSettings

BUILT_IN = same_text.__name__
MAX_PAIRS = 100_000  # of a task's prompts and expected values, compared for its constant answer
COMPARE_LIMIT_S = 60.0  # for all tasks together
_PAIRS_A_CALL = 2_000
_ROWS_A_CALL = 200


class Grading:
    """Grades answers to prompts, and finds what their best constant answers are."""

    def __init__(
        self,
        graders: Graders,
        *,
        default: str,  # data.grader
        include_thinking: bool,  # in what rewards see
        rewards: RewardRunner | None = None,
    ) -> None:
        self._graders = graders
        self._default = default
        self.rewards = rewards  # what computes those of an entry
        self._include_thinking = include_thinking
        self._constants: dict[tuple[int, ...], ConstantAnswers] = {}

    def names(self, prompts: Sequence[Prompt]) -> tuple[str, ...]:
        """Return the names of all that judges answers to these prompts."""
        names = (
            prompt.rewards if _has_rewards(prompt) else (prompt.grader or self._default,)
            for prompt in prompts
        )
        return tuple(dict.fromkeys(chain.from_iterable(names)))

    def can_grade(self, prompt: Prompt) -> bool:
        """Say whether an entry has an expected answer, and a grader of it is there."""
        name = prompt.grader or self._default
        known = "expected_answer" in prompt.metadata and not _has_rewards(prompt)
        return known and self._graders.knows(name)

    async def grade(self, prompt: Prompt, said: str) -> Grade:
        """Compare what the model said in its last turn with metadata.expected_answer.

        `said` may be a turn as it was decoded: thinking and the end-of-turn token are left out.
        Raises GradingError where the grader gives no verdict.
        """
        text = re.sub(r"(<\|\w+\|>\s*)+$", "", split_thinking(said)[1])
        row = {**self._row(prompt), "metadata": dict(prompt.metadata)}
        call = {"type": "grade", "row": row, "answer": text}
        return Grade(**await self._ask(row["grader"], call))

    async def judge(self, prompt: Prompt, trajectory: Trajectory, chat: ChatTemplate) -> Grade:
        """Grade the answer of a rollout, by its entry's rewards where that names them.

        It is right then if each of them gives 1. Raises GradingError where there is no verdict.
        """
        if self.rewards is None or not _has_rewards(prompt):
            return await self.grade(prompt, turn_text(trajectory, trajectory.turns[-1], chat))
        said = conversation(prompt, trajectory, chat, include_thinking=self._include_thinking)
        rewards = await self.rewards.reward(prompt, said)
        if rewards.errors:
            raise GradingError(f"no number from the reward {rewards.errors[0]}")
        right = all(isinstance(value, float) and value >= 1 for value in rewards.values.values())
        return Grade(correct=right, extracted=None, reward=rewards.total)

    async def constants(self, prompts: Sequence[Prompt]) -> ConstantAnswers:
        """Return which expected values of a task are right answers to which of its prompts.

        They are found once for the same prompts.
        """
        key = tuple(prompt.index for prompt in prompts)
        if key not in self._constants:
            self._constants[key] = await self._compare_tasks(prompts)
        return self._constants[key]

    async def _compare_tasks(self, prompts: Sequence[Prompt]) -> ConstantAnswers:
        right: dict[int, frozenset[str]] = {}
        notes: list[str] = []
        ends_at = time.monotonic() + COMPARE_LIMIT_S
        graded = [prompt for prompt in prompts if not _has_rewards(prompt)]
        for task, group in by_task(graded).items():
            what = f"{task}: the constant answer" if task else "the constant answer"
            rows = {json.dumps(row): row for row in map(self._row, group)}
            counts = Counter(map(expected_of, group)).most_common()
            values = [value for value, _ in counts[: max(1, MAX_PAIRS // len(rows))]]
            if len(values) < len(counts):
                notes.append(
                    f"{what} is the best of the {len(values)} commonest expected answers; all "
                    f"{len(counts)} were too many to compare"
                )
            try:
                found = await self._compare(list(rows.values()), values, ends_at=ends_at)
            except GradingError as error:
                notes.append(f"{what} is not known: {error}")
            else:
                same = dict(zip(rows, found, strict=True))
                right |= {prompt.index: same[json.dumps(self._row(prompt))] for prompt in group}
                notes += _not_right_themselves(task, group, right, tried=values)
        return ConstantAnswers(right=right, notes=tuple(notes))

    async def _compare(
        self, rows: Sequence[Mapping[str, Any]], values: Sequence[str], *, ends_at: float
    ) -> list[frozenset[str]]:
        """Return for each row those of `values` that are as good as its expected answer."""
        found: list[frozenset[str]] = []
        names = ", ".join(dict.fromkeys(row["grader"] for row in rows))
        size = max(1, min(_ROWS_A_CALL, _PAIRS_A_CALL // len(values)))
        for start in range(0, len(rows), size):
            left_s = round(ends_at - time.monotonic(), 1)
            if left_s <= 0:
                raise GradingError(f"comparing expected answers took over {COMPARE_LIMIT_S:g} s")
            call = {"type": "compare", "rows": rows[start : start + size], "values": values}
            answer = await self._ask(names, call, limit_s=left_s)
            for signs in answer["same"]:
                same = (value for value, sign in zip(values, signs, strict=True) if sign == "1")
                found.append(frozenset(same))
        return found

    async def _ask(
        self, names: str, call: Mapping[str, Any], *, limit_s: float | None = None
    ) -> dict[str, Any]:
        answer = await self._graders.ask(call, limit_s=limit_s)
        if "error" in answer:
            raise GradingError(f"no verdict from the grader {names}: {answer['error']}")
        return answer

    def _row(self, prompt: Prompt) -> dict[str, Any]:
        """Return what a comparison of values depends on, as rnow.tools.graders has it."""
        name = prompt.grader or self._default
        sees_all = self._graders.takes_metadata(name)
        return {
            "grader": name,
            "expected": expected_of(prompt),
            "metadata": dict(prompt.metadata) if sees_all else {},
        }


@asynccontextmanager
async def open_grading(
    loaded: LoadedConfig,
    project: Path,
    prompts: Sequence[Prompt],
    *,
    file: str,
    log_file: Path,
    with_rewards: bool = True,
) -> AsyncIterator[Grading]:
    """Make ready to grade answers to `prompts`, those of `file`: in this process, or in that of
    rewards.py, where they need a grader of it, or `with_rewards` name rewards.

    Raises DataError where a name is not there, ToolDefinitionError where rewards.py cannot be used.
    """
    config = loaded.config
    graded_by = partial(
        Grading,
        default=config.data.grader,
        include_thinking=config.rollout.include_thinking,
    )
    gradable = [prompt for prompt in prompts if "expected_answer" in prompt.metadata]
    is_needed = any((prompt.grader or config.data.grader) != BUILT_IN for prompt in gradable)
    if not is_needed and not (with_rewards and any(prompt.rewards for prompt in prompts)):
        yield graded_by(LocalGraders(GRADER_REGISTRY))
        return
    checked = {file: prompts if with_rewards else [replace(one, rewards=()) for one in prompts]}
    if not (project / "rewards.py").is_file():
        raise DataError(problems=name_problems(loaded, checked, None))
    async with RewardRunner(RewardSettings.of(loaded, project, log_file=log_file)) as runner:
        problems = name_problems(loaded, checked, runner)
        if problems:
            raise DataError(problems=problems)
        yield graded_by(runner, rewards=runner)


def require_gradable(prompts: Sequence[Prompt], *, file: str) -> None:
    """Raise DataError for the first prompt of `file` whose answer could not be graded."""
    for prompt in prompts:
        if "expected_answer" not in prompt.metadata and not _has_rewards(prompt):
            what = (
                "there is no metadata.expected_answer, without which an answer cannot be graded; "
                "add it, or take the line out"
            )
            whole = Problem(file=file, line=prompt.line, key=None, message=what)
            raise DataError(problems=[whole])


def name_problems(
    loaded: LoadedConfig, prompts: Mapping[str, Sequence[Prompt]], runner: RewardRunner | None
) -> list[Problem]:
    """Return what is wrong with the names of graders and rewards that config.yml and entries give.

    `prompts`: of each file. `runner`: of rewards.py; None: there is no such file.
    """
    explain = _without_file if runner is None else runner.grader_problem
    key = "data.grader"
    named = [(str(loaded.file), loaded.lines.get(key), key, loaded.config.data.grader)]
    for file, entries in prompts.items():
        named += [(file, one.line, "grader", one.grader) for one in entries if one.grader]
    problems = [
        Problem(file=file, line=line, key=key, message=f"{key} {what}")
        for file, line, key, name in named
        if (what := explain(name))
    ]
    for file, entries in prompts.items():
        if runner is not None:
            problems += runner.reward_problems(entries, file=file)
        elif one := next((one for one in entries if one.rewards), None):
            message = (
                f"rewards names {', '.join(one.rewards)}, but there is no rewards.py: write one, "
                "with @reward (from rnow.core) above each, or remove rewards from the entries"
            )
            problems.append(
                Problem(
                    file=file,
                    line=one.line,
                    key="rewards",
                    message=message,
                    severity="error" if loaded.config.dataset_type == "rl" else "warning",
                )
            )
    return folded(problems)


def _without_file(name: str) -> str | None:
    if name == BUILT_IN:
        return None
    return (
        f"is '{name}', but there is no rewards.py; write one, with @grader (from rnow.core) above "
        f"the function {name}"
    )


def _not_right_themselves(
    task: str, group: Sequence[Prompt], right: Mapping[int, frozenset[str]], *, tried: Sequence[str]
) -> list[str]:
    """Tell of expected answers that a grader cannot read: who gives them is not right."""
    odd = [
        f"{expected_of(prompt)!r} in line {prompt.line}"
        for prompt in group
        if expected_of(prompt) in {*tried} - right[prompt.index]
    ]
    if not odd:
        return []
    return [f"{task}: by its grader the expected answer itself is wrong {len(odd)} times: {odd[0]}"]


def _has_rewards(prompt: Prompt) -> bool:
    """Say whether an entry's rewards judge its answers: it names some, and no grader."""
    return bool(prompt.rewards) and prompt.grader is None
