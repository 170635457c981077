"""A project's held-out prompts: how right a model is on them, before, during and after training."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rnow.config import LoadedConfig
from rnow.engines.base import Engine
from rnow.engines.deaths import Deaths
from rnow.engines.opening import open_engine
from rnow.engines.spec import EngineSpec
from rnow.environment import Environment, open_environment
from rnow.evaluate import Evaluation, check_gradable, evaluate
from rnow.monitor import Monitor, StartTeller
from rnow.records import Prompt, RolloutId, Trajectory

__all__ = ["HeldOutEvaluator", "Subject", "evaluate_model", "held_out_prompts", "show_evaluation"]

_log = logging.getLogger(__name__)

BASE_VERSION = 0
ADAPTER_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model that is evaluated."""

    engine: EngineSpec  # of a folder with model and tokenizer
    adapter: Path | None = None  # folder with an adapter on it


async def evaluate_model(
    loaded: LoadedConfig,
    project: Path,
    *,
    subject: Subject,
    max_samples: int | None = None,
    say: Callable[[str], None] = _log.info,
) -> Evaluation:
    """Evaluate `subject` on data.val_file, or on its first `max_samples` prompts.

    `say` is told of servers that start, and start again.
    """
    with tempfile.TemporaryDirectory() as logs:
        async with open_environment(
            loaded, project, student=subject.engine.model, log_file=Path(logs) / "tools.log"
        ) as environment:
            prompts = environment.read_prompts(loaded.config.data.val_file).prompts
            check_gradable(prompts)
            return await _evaluate_in(environment, prompts[:max_samples], subject=subject, say=say)


def held_out_prompts(environment: Environment) -> tuple[Prompt, ...]:
    """Return the prompts to evaluate on during a run; none where none is asked for.

    Raises DataError for a data.val_file that cannot be used. That there is none is no error: the
    config's loader has said that nothing is evaluated then.
    """
    config = environment.config
    if not config.trainer.eval_step or not (environment.directory / config.data.val_file).exists():
        return ()
    prompts = environment.read_prompts(config.data.val_file).prompts
    check_gradable(prompts)
    return prompts


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
        *,
        prompts: tuple[Prompt, ...],
        num_steps: int,
    ) -> None:
        config = environment.config
        self._every = config.trainer.eval_step
        self._prompts = prompts
        self._num_steps = num_steps
        self._environment = environment
        self._monitor = monitor
        self._roll = environment.roll(engine, seed=config.seed, temperature=0.0)

    async def __call__(self, step: int) -> dict[str, float]:
        """Return the figures for the step's line of metrics; empty where nothing is due."""
        if not self._prompts or (step % self._every and step != self._num_steps):
            return {}

        async def roll(prompt: Prompt, id: RolloutId) -> Trajectory:
            return await self._roll(prompt, id, step)

        evaluation = await evaluate(
            self._prompts,
            roll,
            chat=self._environment.chat,
            concurrency=self._environment.config.rollout.concurrency,
        )
        self._monitor.record_evaluation(step, evaluation.as_json())
        return {"eval/accuracy": evaluation.accuracy, "eval/format_ok": evaluation.format_ok}


async def _evaluate_in(
    environment: Environment,
    prompts: tuple[Prompt, ...],
    *,
    subject: Subject,
    say: Callable[[str], None],
) -> Evaluation:
    config = environment.config
    engine = await open_engine(
        subject.engine,
        deaths=Deaths(),
        say=say,
        on_progress=partial(StartTeller(say), subject.engine.role),
    )
    try:
        version = BASE_VERSION
        if subject.adapter is not None:
            version = ADAPTER_VERSION
            await engine.load_policy(subject.adapter, version)
        roll = environment.roll(engine, seed=config.seed, temperature=0.0)

        async def one(prompt: Prompt, id: RolloutId) -> Trajectory:
            return await roll(prompt, id, version)

        return await evaluate(
            prompts, one, chat=environment.chat, concurrency=config.rollout.concurrency
        )
    finally:
        await engine.aclose()


def show_evaluation(evaluation: Evaluation, *, title: str, console: Console) -> None:
    """Print accuracy by task and overall, with the 95 % interval of the whole."""
    figures = evaluation.as_json()
    # Not the table's own title, which would wrap at the width of the table.
    console.print(f"{title} on {figures['n']} held-out prompts", highlight=False, markup=False)
    table = Table()
    table.add_column("task")
    table.add_column("accuracy", justify="right")
    for task, accuracy in evaluation.by_task.items():
        table.add_row(task or "(no task_name)", f"{100 * accuracy:.1f} %")
    low, high = figures["interval"]
    table.add_section()
    table.add_row("all", f"{100 * evaluation.accuracy:.1f} %")
    console.print(table)
    console.print(
        f"95 % interval {100 * low:.1f} to {100 * high:.1f} %; "
        f"{100 * evaluation.format_ok:.1f} % in the asked form; {figures['failed']} failed; "
        f"the best constant answers would get {100 * figures['constant']:.1f} %",
        highlight=False,
    )
