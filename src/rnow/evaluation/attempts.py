"""Accuracy of a model on held-out prompts: roll each out, grade what the last turn says.

    prompts × attempts ─▶ roll ─▶ grade ─▶ Answer ─▶ accuracy, pass@k, by task and without NA
                            └─ fails twice ─▶ counted by its reason, never graded

A rollout that failed (an engine, a tool worker, a deadline) is no wrong answer: it is left out, and
how many there were stands beside every figure.
"""

from collections.abc import Callable, Sequence

from rnow.chat.conversation import turn_text
from rnow.chat.template import ChatTemplate
from rnow.errors import RolloutError
from rnow.evaluation.figures import Answer, Evaluation, expected_of, task_of
from rnow.evaluation.grading import Grade, grade
from rnow.evaluation.pass_at_k import GREEDY, PassAtK, attempts_of, temperatures
from rnow.records import Prompt, RolloutId, Trajectory
from rnow.rollout.attempt import Attempt
from rnow.rollout.many import Losses, Roll, roll_many
from rnow.runtime.kill_points import point

EVAL_STEP = -1
MAX_FAILED = 0.2


async def evaluate(
    prompts: Sequence[Prompt],
    roll: Roll,
    *,
    policy_version: int,
    chat: ChatTemplate,
    concurrency: int,
    passes: Sequence[PassAtK] = GREEDY,
    on_answer: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Roll out every prompt as often as `passes` need, and grade the answers.

    Each has a metadata.expected_answer. Raises RolloutError when more than MAX_FAILED of the
    rollouts have failed twice, since an accuracy of the rest would say little.
    """
    attempts = [
        Attempt(
            prompt=prompt,
            id=RolloutId(EVAL_STEP, prompt.index, number),
            policy_version=policy_version,
            temperature=temperature,
        )
        for prompt in prompts
        for number, temperature in enumerate(temperatures(passes))
    ]

    async def graded(attempt: Attempt, trajectory: Trajectory) -> Answer:
        point("eval/rolled")
        verdict = grade_answer(attempt.prompt, trajectory, chat)
        on_answer()
        return Answer(prompt=attempt.prompt, trajectory=trajectory, grade=verdict)

    losses = Losses(num_wanted=len(attempts), max_share=MAX_FAILED, refuse=_says_little)
    answers = await roll_many(attempts, roll, graded, lose=losses.add, concurrency=concurrency)
    first = attempts_of(passes[0], passes)
    if not any(answer.trajectory.id.rollout in first for answer in answers):
        raise _says_little(losses)
    return Evaluation(answers=tuple(answers), passes=tuple(passes), failures=losses.reasons)


def _says_little(losses: Losses) -> RolloutError:
    (reason, count), *_ = losses.reasons.items() or [("there are no prompts", 1)]
    return RolloutError(
        f"{losses.num} of {losses.num_wanted} rollouts of held-out prompts have failed, and the "
        f"others would say little; {count} times because: {reason}"
    )


def grade_answer(prompt: Prompt, trajectory: Trajectory, chat: ChatTemplate) -> Grade:
    """Grade what the student said in its last turn against metadata.expected_answer."""
    said = turn_text(trajectory, trajectory.turns[-1], chat)
    return grade(task_of(prompt), expected_of(prompt), said)
