"""What a run keeps of its rollouts to be looked into afterwards; nothing is trained on it.

    update      what the trainer's own network gave each sampled token, before it was updated
    favourites  what the teacher would rather have said, of the rollouts that it likes least
    eval        held-out answers, each with its grade

rnow report reads these (runs/beside.py). Where the teacher's server does not tell its favourites, a
line says so once, and the run goes on without.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import numpy as np

from rnow.chat.conversation import turn_text
from rnow.chat.template import ChatTemplate
from rnow.errors import GradingError, TeacherError
from rnow.evaluation.figures import Evaluation
from rnow.evaluation.grading import Grading
from rnow.records import Batch, FloatArray, Prompt, ScoredTrajectory, Trajectory
from rnow.runs.beside import write_beside
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import trajectory_to_json
from rnow.runtime.side_by_side import side_by_side
from rnow.training.teacher import Teacher

NUM_EXPLAINED = 4  # rollouts of a step
NUM_WORDS = 10  # in a row, that stand in an entry's metadata and in a rollout
DIGITS = 4  # of a log-probability that is only looked at

Verdict = Callable[[Prompt, Trajectory], Awaitable[bool | None]]

_log = logging.getLogger(__name__)


def keep_logprobs(run: RunDirectory, batch: Batch, logprobs: Mapping[int, FloatArray]) -> None:
    """Write what the trainer gave each sampled token of a batch."""
    lines = (
        {**_name(batch.scored[index]), "logprobs": _rounded(values)}
        for index, values in sorted(logprobs.items())
    )
    write_beside(run.beside("update", batch.step), lines)


class FavouriteKeeper:
    """Asks the teacher once more about a few rollouts of a step, after all of them are scored."""

    def __init__(self, teacher: Teacher, run: RunDirectory, *, num: int) -> None:
        self._teacher = teacher
        self._run = run
        self._num = num

    async def __call__(self, batch: Batch) -> None:
        if self._num == 0:
            return
        worst = sorted(batch.scored, key=lambda one: (-one.mean_gap, one.trajectory.id))
        try:
            lines = await side_by_side(*map(self._line, worst[:NUM_EXPLAINED]))
        except TeacherError as error:
            _log.warning("the teacher's favourites are not kept from here on: %s", error)
            self._num = 0
            return
        write_beside(self._run.beside("favourites", batch.step), lines)

    async def _line(self, scored: ScoredTrajectory) -> dict[str, Any]:
        ids, logprobs = await self._teacher.favourites(scored.trajectory, self._num)
        return {**_name(scored), "ids": ids.tolist(), "logprobs": _rounded(logprobs)}


def answer_lines(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """Yield each held-out answer as it is kept: what was said, read from it, and expected."""
    for answer in evaluation.answers:
        yield {
            **trajectory_to_json(answer.trajectory),
            "right": answer.grade.correct,
            "extracted": answer.grade.extracted,
            "expected": answer.prompt.metadata.get("expected_answer"),
        }


async def no_verdict(prompt: Prompt, trajectory: Trajectory) -> bool | None:
    """Judge nothing."""
    return None


def verdicts(grading: Grading, chat: ChatTemplate) -> Verdict:
    """Return what says whether a rollout's answer is right; None where its entry does not tell.

    Rewards are not asked: some of them cost money.
    """

    async def judge(prompt: Prompt, trajectory: Trajectory) -> bool | None:
        if not grading.can_grade(prompt):
            return None
        said = turn_text(trajectory, trajectory.turns[-1], chat)
        try:
            return (await grading.grade(prompt, said)).correct
        except GradingError as error:
            _log.warning("rollout %s is not graded: %s", trajectory.id, error)
            return None

    return judge


def copier(chat: ChatTemplate) -> Callable[[Prompt, Trajectory], bool]:
    """Return what says whether a rollout writes out what its entry holds and does not show.

    That is a run of NUM_WORDS words of the metadata, the expected answer apart, which stand neither
    in the prompt nor in what tools said.
    """

    def copies(prompt: Prompt, trajectory: Trajectory) -> bool:
        rest = {key: value for key, value in prompt.metadata.items() if key != "expected_answer"}
        hidden = set[tuple[str, ...]]().union(*map(_runs, _texts(rest)))
        if not hidden:
            return False
        said = [turn_text(trajectory, turn, chat) for turn in trajectory.turns]
        copied = hidden & _runs("\n".join(said))
        shown = trajectory.token_ids[~trajectory.action_mask].tolist()
        return bool(copied) and not copied <= _runs(chat.decode(shown))

    return copies


def _texts(value: object) -> Iterator[str]:
    """Yield each text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[at:] for at in range(NUM_WORDS)), strict=False))


def _name(scored: ScoredTrajectory) -> dict[str, int]:
    return {"prompt": scored.trajectory.id.prompt, "rollout": scored.trajectory.id.rollout}


def _rounded(values: FloatArray) -> Any:
    return np.round(values.astype(float), DIGITS).tolist()
