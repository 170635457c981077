"""How right the student is on held-out prompts while it is trained."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnow.config.load import LoadedConfig
from rnow.engines.base import Engine
from rnow.evaluation.attempts import evaluate
from rnow.evaluation.grading import Grading
from rnow.evaluation.held_out import gradable_prompts, open_held_out_grading
from rnow.records import Prompt
from rnow.rollout.environment import Environment
from rnow.training.looked_into import Verdict, no_verdict, verdicts
from rnow.training.monitor import Monitor


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The prompts to evaluate on during a run, and what grades the answers to them."""

    prompts: tuple[Prompt, ...]  # none where no evaluation is asked for
    grading: Grading


@asynccontextmanager
async def open_held_out(
    loaded: LoadedConfig, environment: Environment, *, log_file: Path, say: Callable[[str], None]
) -> AsyncIterator[HeldOut]:
    """Read the prompts, and start their graders.

    Raises DataError for a data.val_file that cannot be used. That there is none is no error: the
    config's loader has said that nothing is evaluated then.
    """
    config, directory = loaded.config, environment.directory
    is_due = config.trainer.eval_step and (directory / config.data.val_file).exists()
    prompts = gradable_prompts(environment) if is_due else ()
    opened = open_held_out_grading(loaded, directory, prompts, log_file=log_file, say=say)
    async with opened as grading:
        yield HeldOut(prompts=prompts, grading=grading)


def held_out_evaluation(
    environment: Environment,
    engine: Engine,
    monitor: Monitor,
    held_out: HeldOut,
    *,
    num_steps: int,
) -> Callable[[int], Coroutine[Any, Any, dict[str, float]]]:
    """Return what evaluates the student after so many steps, greedily, and gives its figures.

    It does so before step 0, every trainer.eval_step steps, and when the run has ended; where
    nothing is due, or there are no prompts, there are no figures.
    """
    config = environment.config

    async def evaluate_if_due(step: int) -> dict[str, float]:
        if not held_out.prompts or (step % config.trainer.eval_step and step != num_steps):
            return {}
        monitor.expect(len(held_out.prompts))
        evaluation = await evaluate(
            held_out.prompts,
            monitor.tally.roll(environment.roll(engine), environment.chat),
            grading=held_out.grading,
            policy_version=step,
            chat=environment.chat,
            concurrency=config.rollout.concurrency,
            on_answer=monitor.advance,
        )
        return monitor.record_evaluation(step, evaluation, environment.chat)

    return evaluate_if_due


def verdict_of(held_out: HeldOut, environment: Environment) -> Verdict:
    """Return what grades rollouts of training: what grades held-out ones, where that is open."""
    if not held_out.prompts or not environment.config.data.grade_rollouts:
        return no_verdict
    return verdicts(held_out.grading, environment.chat)
