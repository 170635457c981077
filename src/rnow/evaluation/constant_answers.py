"""What one and the same answer to every question of a task would score. Pure.

It takes no browsing and no model, so it is the floor that a result must beat. The answers that are
tried are the expected ones of the task.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rnow.records import Prompt


def task_of(prompt: Prompt) -> str:
    return str(prompt.metadata.get("task_name", ""))


def expected_of(prompt: Prompt) -> str:
    return str(prompt.metadata["expected_answer"])


def by_task(prompts: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """Return the prompts of each task, in the order in which they stand."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(task_of(prompt), []).append(prompt)
    return groups


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantAnswers:
    """Which expected values of a task are right answers to which of its prompts.

    ConstantAnswers(right={0: {"NA"}, 1: {"NA"}, 2: {"Bern", "Berne"}})
    """

    right: Mapping[int, frozenset[str]]  # index of a prompt -> values; without those not known
    notes: tuple[str, ...] = ()  # why some are not known, or may be better than those tried

    def accuracy(self, prompts: Sequence[Prompt]) -> float | None:
        """Return the share of prompts that the best constant answer of each task gets right.

        None where that of one of the tasks is not known, as where rewards judge.
        """
        num_right = 0
        for group in by_task(prompts).values():
            if not all(prompt.index in self.right for prompt in group):
                return None
            hits = Counter(value for prompt in group for value in self.right[prompt.index])
            num_right += max(hits.values(), default=0)
        return num_right / len(prompts)
