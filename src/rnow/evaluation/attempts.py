"""Accuracy of a model on held-out prompts: roll each out, grade what the last turn says.

    prompts × attempts ─▶ roll ─▶ grade ─▶ Answer ─▶ accuracy, pass@k, by task and without NA
                            └─ fails twice ─▶ counted by its reason, never graded

A rollout that failed (an engine, a tool worker, a deadline) is no wrong answer: it is left out, and
how many there were stands beside every figure.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn

from rnow.chat.conversation import turn_text
from rnow.chat.template import ChatTemplate
from rnow.errors import (
    DeadlineError,
    EngineError,
    RnowError,
    RolloutError,
    TemplateError,
)
from rnow.evaluation.figures import Answer, Evaluation, expected_of, task_of
from rnow.evaluation.grading import grade
from rnow.evaluation.pass_at_k import GREEDY, PassAtK, attempts_of, temperatures
from rnow.records import Prompt, RolloutId, Trajectory
from rnow.runtime.kill_points import point

EVAL_STEP = -1
NUM_ATTEMPTS = 2
MAX_FAILED = 0.2

Roll = Callable[[Prompt, RolloutId, float], Awaitable[Trajectory]]


async def evaluate(
    prompts: Sequence[Prompt],
    roll: Roll,
    *,
    chat: ChatTemplate,
    concurrency: int,
    passes: Sequence[PassAtK] = GREEDY,
    on_answer: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Roll out every prompt as often as `passes` need, and grade the answers.

    Each has a metadata.expected_answer. `roll` is given the temperature last. Raises RolloutError
    when more than MAX_FAILED of the rollouts have failed twice, since an accuracy of the rest would
    say little.
    """
    attempts = [
        (prompt, RolloutId(EVAL_STEP, prompt.index, attempt), temperature)
        for prompt in prompts
        for attempt, temperature in enumerate(temperatures(passes))
    ]
    slots = asyncio.Semaphore(concurrency)
    failures: Counter[str] = Counter()
    answers: list[Answer] = []

    async def one(prompt: Prompt, id: RolloutId, temperature: float) -> None:
        async with slots:
            trajectory = await _rolled(roll, prompt, id, temperature, failures=failures)
        if trajectory is None:
            if failures.total() > MAX_FAILED * len(attempts):
                _refuse(failures, num=len(attempts))
            return
        point("eval/rolled")
        verdict = grade(task_of(prompt), expected_of(prompt), answer_text(trajectory, chat))
        answers.append(Answer(prompt=prompt, trajectory=trajectory, grade=verdict))
        on_answer()

    try:
        async with asyncio.TaskGroup() as group:
            for attempt in attempts:
                group.create_task(one(*attempt))
    except* (RnowError, OSError) as errors:
        raise errors.exceptions[0] from errors
    first = attempts_of(passes[0], passes)
    if not any(answer.trajectory.id.rollout in first for answer in answers):
        _refuse(failures, num=len(attempts))
    answers.sort(key=lambda answer: answer.trajectory.id)
    return Evaluation(answers=tuple(answers), passes=tuple(passes), failures=dict(failures))


async def _rolled(
    roll: Roll, prompt: Prompt, id: RolloutId, temperature: float, *, failures: Counter[str]
) -> Trajectory | None:
    for attempt in range(NUM_ATTEMPTS):
        try:
            return await roll(prompt, id, temperature)
        except (RolloutError, EngineError, DeadlineError, TemplateError) as error:
            if attempt == NUM_ATTEMPTS - 1:
                failures[str(error)] += 1
    return None


def _refuse(failures: Counter[str], *, num: int) -> NoReturn:
    (reason, count), *_ = failures.most_common(1) or [("there are no prompts", 1)]
    raise RolloutError(
        f"{failures.total()} of {num} rollouts of held-out prompts have failed, and the others "
        f"would say little; {count} times because: {reason}"
    )


def answer_text(trajectory: Trajectory, chat: ChatTemplate) -> str:
    """Return what the student said in its last turn, without the token that ended it."""
    return turn_text(trajectory, trajectory.turns[-1], chat)
