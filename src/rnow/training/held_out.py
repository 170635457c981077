"""How right the student is on held-out prompts while it is trained."""

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


class HeldOutEvaluator:
    """Evaluates a student in training on held-out prompts, greedily.

    It does so before step 0, every trainer.eval_step steps, and when the run has ended; without
    prompts never.
    """

    def __init__(
        self,
        environment: Environment,
        engine: Engine,
        monitor: Monitor,
        prompts: tuple[Prompt, ...],
        *,
        num_steps: int,
    ) -> None:
        self._every = environment.config.trainer.eval_step
        self._prompts = prompts
        self._num_steps = num_steps
        self._environment = environment
        self._monitor = monitor
        self._engine = engine

    async def __call__(self, step: int) -> dict[str, float]:
        """Return the figures for the step's line of metrics; empty where nothing is due."""
        if not self._prompts or (step % self._every and step != self._num_steps):
            return {}
        evaluation = await evaluate(
            self._prompts,
            self._environment.roll(self._engine),
            policy_version=step,
            chat=self._environment.chat,
            concurrency=self._environment.config.rollout.concurrency,
        )
        self._monitor.record_evaluation(step, evaluation.as_json())
        return {
            "eval/accuracy": evaluation.accuracy,
            "eval/format_ok": evaluation.format_ok,
            "eval/failed": evaluation.num_failed,
        }
