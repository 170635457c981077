"""How right the student is on held-out prompts while it is trained."""

from collections.abc import Callable, Coroutine
from typing import Any

from rnow.engines.base import Engine
from rnow.evaluation.attempts import evaluate
from rnow.evaluation.held_out import gradable_prompts
from rnow.records import Prompt
from rnow.rollout.environment import Environment
from rnow.training.monitor import Monitor


def held_out_prompts(environment: Environment) -> tuple[Prompt, ...]:
    """Return the prompts to evaluate on during a run; none where none is asked for.

    Raises DataError for a data.val_file that cannot be used. That there is none is no error: the
    config's loader has said that nothing is evaluated then.
    """
    config = environment.config
    if not config.trainer.eval_step or not (environment.directory / config.data.val_file).exists():
        return ()
    return gradable_prompts(environment)


def held_out_evaluation(
    environment: Environment,
    engine: Engine,
    monitor: Monitor,
    prompts: tuple[Prompt, ...],
    *,
    num_steps: int,
) -> Callable[[int], Coroutine[Any, Any, dict[str, float]]]:
    """Return what evaluates the student after so many steps, greedily, and gives its figures.

    It does so before step 0, every trainer.eval_step steps, and when the run has ended; where
    nothing is due, or there are no prompts, there are no figures.
    """
    config = environment.config

    async def evaluate_if_due(step: int) -> dict[str, float]:
        if not prompts or (step % config.trainer.eval_step and step != num_steps):
            return {}
        monitor.expect(len(prompts))
        evaluation = await evaluate(
            prompts,
            monitor.tally.roll(environment.roll(engine), environment.chat),
            policy_version=step,
            chat=environment.chat,
            concurrency=config.rollout.concurrency,
            on_answer=monitor.advance,
        )
        return monitor.record_evaluation(step, evaluation, environment.chat)

    return evaluate_if_due
