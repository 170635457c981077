"""What an evaluation found: graded answers, and the figures that they give. Pure.

A share of prompts stands with its Wilson interval at 95 %, its number of prompts, and the share
that the best constant answer of each task would get. Where a prompt was attempted several times,
its share of right attempts counts, and the interval is that of as many prompts: a little too wide,
since a mean of attempts varies less than one of them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rnow.core.grader import is_not_available
from rnow.evaluation.constant_answers import ConstantAnswers, expected_of, task_of
from rnow.evaluation.pass_at_k import GREEDY, PassAtK, attempts_of, pass_at_k
from rnow.records import EndReason, Prompt, ToolOutcome, Trajectory
from rnow.tools.graders import Grade

_MAX_REASONS = 3

Key = TypeVar("Key", str, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One graded attempt."""

    prompt: Prompt
    trajectory: Trajectory
    grade: Grade


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A mean over prompts. Figures(value=0.5, num=384, constant=0.36, interval=(0.45, 0.55))"""

    value: float
    num: int  # prompts
    constant: float | None  # what the best constant answer of each task would get; None: unknown
    interval: tuple[float, float]

    @property
    def rounded_interval(self) -> list[float]:
        return [round(bound, 4) for bound in self.interval]

    def as_json(self) -> dict[str, Any]:
        return {
            "accuracy": self.value,
            "interval": self.rounded_interval,
            "n": self.num,
            "constant": self.constant,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All answers of one model, in the order of prompts and attempts."""

    answers: tuple[Answer, ...]
    constants: ConstantAnswers
    passes: tuple[PassAtK, ...] = GREEDY  # the smallest k first
    # Attempts that are not among the answers, by their reason, the commonest first: rollouts that
    # failed, and those whose grader gave no verdict.
    failures: Mapping[str, int] = field(default_factory=dict)
    num_ungraded: int = 0

    @property
    def num_failed(self) -> int:
        return sum(self.failures.values()) - self.num_ungraded

    @property
    def first(self) -> PassAtK:
        """The metric whose attempts `accuracy` is of: greedy ones, unless they were not wanted."""
        return self.passes[0]

    @property
    def accuracy(self) -> float:
        """The share of right attempts."""
        return self.figures().value

    @property
    def format_ok(self) -> float:
        judged = self._attempts(self.first)
        return sum(answer.grade.format_ok for answer in judged) / len(judged)

    @property
    def mean_reward(self) -> float | None:
        """The mean total of attempts that rewards have judged; None: there are none."""
        judged = [answer.grade.reward for answer in self._attempts(self.first)]
        totals = [total for total in judged if total is not None]
        return sum(totals) / len(totals) if totals else None

    @property
    def by_task(self) -> dict[str, float]:
        return {task: figures.value for task, figures in self.tasks().items()}

    def figures(self) -> Figures:
        """Return accuracy over all prompts."""
        return _figures(self._scores(), self.constants)

    def tasks(self) -> dict[str, Figures]:
        """Return accuracy on each task, under the name that the prompts have for it."""
        return _figures_by(task_of, self._scores(), self.constants)

    def by_availability(self) -> dict[bool, Figures]:
        """Return accuracy on prompts that have an answer (True), and on those whose is NA."""

        def has_answer(prompt: Prompt) -> bool:
            return not is_not_available(expected_of(prompt))

        scores = [each for each in self._scores() if "expected_answer" in each[0].metadata]
        return _figures_by(has_answer, scores, self.constants)

    def pass_figures(self, metric: PassAtK) -> Figures | None:
        """Return pass@k over the prompts of which k attempts came to an end; None: no such."""
        scores = self._scores(metric)
        return _figures(scores, self.constants) if scores else None

    @property
    def num_tool_failures(self) -> int:
        """Tool calls that ended in an error of the tool or in its deadline, in all attempts."""
        failed = (ToolOutcome.ERROR, ToolOutcome.TIMEOUT)
        return sum(
            call.outcome in failed
            for answer in self.answers
            for call in answer.trajectory.tool_calls
        )

    @property
    def num_timed_out(self) -> int:
        """Rollouts that their deadline cut; what they had said by then was graded."""
        return sum(answer.trajectory.end_reason is EndReason.TIMEOUT for answer in self.answers)

    def as_json(self) -> dict[str, Any]:
        """Return all figures; accuracy is of the first metric's attempts."""
        availability = self.by_availability()
        passes = {metric: self.pass_figures(metric) for metric in self.passes}
        return {
            **self.figures().as_json(),
            "temperature": self.first.temperature,
            "format_ok": self.format_ok,
            "reward": self.mean_reward,
            "by_task": self.by_task,
            "tasks": {task: figures.as_json() for task, figures in self.tasks().items()},
            "not_na": availability[True].as_json() if True in availability else None,
            "na": availability[False].as_json() if False in availability else None,
            "pass_at": {
                str(metric.k): figures
                and {
                    "value": figures.value,
                    "interval": figures.rounded_interval,
                    "n": figures.num,
                    "temperature": metric.temperature,
                }
                for metric, figures in passes.items()
            },
            "failed": self.num_failed,
            "ungraded": self.num_ungraded,
            "failures": self.most_common_failures(),
            "tool_failures": self.num_tool_failures,
            "timed_out": self.num_timed_out,
            "notes": list(self.constants.notes),
        }

    def most_common_failures(self) -> dict[str, int]:
        return dict(list(self.failures.items())[:_MAX_REASONS])

    def _attempts(self, metric: PassAtK) -> list[Answer]:
        attempts = attempts_of(metric, self.passes)
        return [answer for answer in self.answers if answer.trajectory.id.rollout in attempts]

    def _scores(self, metric: PassAtK | None = None) -> list[tuple[Prompt, float]]:
        """Return each prompt with its pass@k, or its share of right attempts."""
        by_prompt: dict[int, list[Answer]] = {}
        for answer in self._attempts(metric or self.first):
            by_prompt.setdefault(answer.prompt.index, []).append(answer)
        k = 1 if metric is None else metric.k
        return [
            (
                answers[0].prompt,
                pass_at_k(len(answers), sum(answer.grade.correct for answer in answers), k=k),
            )
            for answers in by_prompt.values()
            if len(answers) >= k
        ]


def wilson_interval(num_correct: float, num: int, *, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a share, by default at 95 %.

    Unlike share ± z·σ it stays within 0 and 1, and is honest at 0 of 30 and 30 of 30.
    """
    if not 0 <= num_correct <= num or num == 0:
        raise ValueError(f"{num_correct} correct of {num} is not a share")
    share, spread = num_correct / num, z * z / num
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / num + spread / (4 * num))
    return max(0.0, centre - half), min(1.0, centre + half)


def _figures_by(
    key: Callable[[Prompt], Key],
    scores: Sequence[tuple[Prompt, float]],
    constants: ConstantAnswers,
) -> dict[Key, Figures]:
    keys = sorted({key(prompt) for prompt, _ in scores})
    return {
        one: _figures(
            [(prompt, score) for prompt, score in scores if key(prompt) == one], constants
        )
        for one in keys
    }


def _figures(scores: Sequence[tuple[Prompt, float]], constants: ConstantAnswers) -> Figures:
    total = sum(score for _, score in scores)
    return Figures(
        value=total / len(scores),
        num=len(scores),
        constant=constants.accuracy([prompt for prompt, _ in scores]),
        interval=wilson_interval(total, len(scores)),
    )
