"""Accuracy of a model on held-out prompts: roll each out, grade what the last turn says.

    prompts × attempts ─▶ roll ─▶ grade ─▶ Answer ─▶ accuracy, pass@k, by task and without NA
                            │       └─ no verdict ─┐
                            └─ fails twice ────────┴─▶ counted by its reason, no answer

A rollout that failed (an engine, a tool worker, a deadline) is no wrong answer, and neither is one
whose grader failed: it is left out, and how many there were stands beside every figure.
"""

from collections.abc import Callable, Sequence

from rnow.chat.template import ChatTemplate
from rnow.errors import GradingError, RolloutError
from rnow.evaluation.figures import Answer, Evaluation
from rnow.evaluation.grading import Grading
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
    grading: Grading,
    policy_version: int,
    chat: ChatTemplate,
    concurrency: int,
    passes: Sequence[PassAtK] = GREEDY,
    on_answer: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Roll out every prompt as often as `passes` need, and grade the answers.

    Each has a metadata.expected_answer, or rewards. Raises RolloutError when more than MAX_FAILED
    of the rollouts have failed twice, since an accuracy of the rest would say little.
    """
    constants = await grading.constants(prompts)
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
        verdict = await grading.judge(attempt.prompt, trajectory, chat)
        on_answer()
        return Answer(prompt=attempt.prompt, trajectory=trajectory, grade=verdict)

    losses = Losses(num_wanted=len(attempts), max_share=MAX_FAILED, refuse=_says_little)
    answers = await roll_many(attempts, roll, graded, lose=losses.add, concurrency=concurrency)
    first = attempts_of(passes[0], passes)
    if not any(answer.trajectory.id.rollout in first for answer in answers):
        raise _says_little(losses)
    return Evaluation(
        answers=tuple(answers),
        constants=constants,
        passes=tuple(passes),
        failures=losses.reasons,
        num_ungraded=losses.by_type[GradingError],
    )


def _says_little(losses: Losses) -> RolloutError:
    (reason, count), *_ = losses.reasons.items() or [("there are no prompts", 1)]
    what = "have failed or could not be graded" if losses.by_type[GradingError] else "have failed"
    return RolloutError(
        f"{losses.num} of {losses.num_wanted} rollouts of held-out prompts {what}, and the "
        f"others would say little; {count} times because: {reason}"
    )
