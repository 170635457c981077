"""Accuracy of a model on held-out prompts: roll out each once, grade what the last turn says."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rnow.chat import ChatTemplate
from rnow.errors import DataError, DeadlineError, EngineError, RolloutError, TemplateError
from rnow.grading import Grade, constant_answer_accuracy, grade, wilson_interval
from rnow.killpoints import point
from rnow.records import Prompt, RolloutId, Trajectory

__all__ = ["Answer", "Evaluation", "answer_text", "check_gradable", "evaluate"]

EVAL_STEP = -1
NUM_ATTEMPTS = 2
MAX_FAILED = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One graded attempt."""

    prompt: Prompt
    trajectory: Trajectory
    grade: Grade


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All answers of one model, in the order of the prompts."""

    answers: tuple[Answer, ...]
    num_failed: int  # rollouts that gave no answer; they are not among the answers

    @property
    def accuracy(self) -> float:
        return _share(self.answers, lambda answer: answer.grade.correct)

    @property
    def format_ok(self) -> float:
        return _share(self.answers, lambda answer: answer.grade.format_ok)

    @property
    def constant_accuracy(self) -> float:
        """What the best constant answer of each task would get: the floor to beat."""
        return constant_answer_accuracy(
            (_task(answer.prompt), _expected(answer.prompt)) for answer in self.answers
        )

    @property
    def by_task(self) -> dict[str, float]:
        tasks = sorted({_task(answer.prompt) for answer in self.answers})
        return {
            task: _share(
                [answer for answer in self.answers if _task(answer.prompt) == task],
                lambda answer: answer.grade.correct,
            )
            for task in tasks
        }

    def as_json(self) -> dict[str, Any]:
        """Return the figures: accuracy with its 95 % interval, by task, and how many failed."""
        num_correct = sum(answer.grade.correct for answer in self.answers)
        low, high = wilson_interval(num_correct, len(self.answers))
        return {
            "accuracy": self.accuracy,
            "interval": [round(low, 4), round(high, 4)],
            "n": len(self.answers),
            "format_ok": self.format_ok,
            "by_task": self.by_task,
            "constant": self.constant_accuracy,
            "failed": self.num_failed,
        }


async def evaluate(
    prompts: Sequence[Prompt],
    roll: Callable[[Prompt, RolloutId], Awaitable[Trajectory]],
    *,
    chat: ChatTemplate,
    concurrency: int,
) -> Evaluation:
    """Roll out every prompt once and grade it against its metadata.expected_answer.

    A rollout that fails twice is no answer: it is counted and left out. Raises RolloutError when
    more than MAX_FAILED of them fail, since an accuracy of the rest would say little.
    """
    check_gradable(prompts)
    slots = asyncio.Semaphore(concurrency)
    reasons: Counter[str] = Counter()

    async def one(prompt: Prompt) -> Answer | None:
        for attempt in range(NUM_ATTEMPTS):
            try:
                async with slots:
                    trajectory = await roll(prompt, RolloutId(EVAL_STEP, prompt.index, 0))
            except (RolloutError, EngineError, DeadlineError, TemplateError) as error:
                if attempt == NUM_ATTEMPTS - 1:
                    reasons[str(error)] += 1
                continue
            point("eval/rolled")
            verdict = grade(_task(prompt), _expected(prompt), answer_text(trajectory, chat))
            return Answer(prompt=prompt, trajectory=trajectory, grade=verdict)
        return None

    answers = await asyncio.gather(*(one(prompt) for prompt in prompts))
    kept = tuple(answer for answer in answers if answer is not None)
    failed = len(prompts) - len(kept)
    if failed > MAX_FAILED * len(prompts) or not kept:
        (reason, count), *_ = reasons.most_common(1) or [("no prompts", 0)]
        raise RolloutError(
            f"{failed} of {len(prompts)} held-out prompts could not be rolled out; "
            f"{count} times because: {reason}"
        )
    return Evaluation(answers=kept, num_failed=failed)


def check_gradable(prompts: Sequence[Prompt]) -> None:
    """Raise DataError for the first prompt whose answer could not be graded."""
    for prompt in prompts:
        if "expected_answer" not in prompt.metadata:
            raise DataError(
                f"line {prompt.line} of the evaluation file has no metadata.expected_answer; "
                "without it an answer cannot be graded"
            )


def answer_text(trajectory: Trajectory, chat: ChatTemplate) -> str:
    """Return what the student said in its last turn, without the token that ended it."""
    last = trajectory.turns[-1]
    ids = trajectory.token_ids[last.start : last.end].tolist()
    return chat.decode(ids[:-1] if ids[-1] in chat.stop_token_ids else ids)


def _task(prompt: Prompt) -> str:
    return str(prompt.metadata.get("task_name", ""))


def _expected(prompt: Prompt) -> str:
    return str(prompt.metadata["expected_answer"])


def _share(answers: Sequence[Answer], holds: Callable[[Answer], bool]) -> float:
    return sum(map(holds, answers)) / max(1, len(answers))
