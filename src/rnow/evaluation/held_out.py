"""A project's held-out prompts: how right a model is on them, before, during and after training."""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from rnow.config.load import LoadedConfig
from rnow.evaluation.attempts import evaluate
from rnow.evaluation.figures import Evaluation
from rnow.evaluation.grading import Grading, open_grading, require_gradable
from rnow.evaluation.pass_at_k import GREEDY, PassAtK
from rnow.evaluation.subject import Subject, open_subject
from rnow.records import Prompt
from rnow.rollout.environment import Environment, open_environment
from rnow.runtime.logs import log_to

_log = logging.getLogger(__name__)


async def evaluate_model(
    loaded: LoadedConfig,
    project: Path,
    *,
    subject: Subject,
    log_file: Path,
    passes: Sequence[PassAtK] = GREEDY,
    max_samples: int | None = None,
    say: Callable[[str], None] = _log.info,
    on_answer: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate `subject` on data.val_file, or on its first `max_samples` prompts.

    Tools write to `log_file`, what rnow logs stands in controller.log beside it. `say` is told how
    answers are graded, and of servers that start, and start again; `on_answer` is called after each
    answer.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        stack.enter_context(log_to(log_file.with_name("controller.log")))
        opening = open_environment(loaded, project, student=subject.engine.model, log_file=log_file)
        environment = await stack.enter_async_context(opening)
        prompts = gradable_prompts(environment)[:max_samples]
        for notice in environment.check({loaded.config.data.val_file: prompts}):
            say(notice)
        opened = open_held_out_grading(loaded, project, prompts, log_file=log_file, say=say)
        grading = await stack.enter_async_context(opened)
        engine, version = await stack.enter_async_context(open_subject(subject, say=say))
        return await evaluate(
            prompts,
            environment.roll(engine),
            grading=grading,
            policy_version=version,
            chat=environment.chat,
            concurrency=loaded.config.rollout.concurrency,
            passes=passes,
            on_answer=on_answer,
        )


@asynccontextmanager
async def open_held_out_grading(
    loaded: LoadedConfig,
    project: Path,
    prompts: Sequence[Prompt],
    *,
    log_file: Path,
    say: Callable[[str], None],
) -> AsyncIterator[Grading]:
    """Make ready to grade answers to prompts of data.val_file; `say` is told how that is done.

    What rewards.py prints stands in rewards.log beside `log_file`.
    """
    file, log_file = loaded.config.data.val_file, log_file.with_name("rewards.log")
    async with open_grading(loaded, project, prompts, file=file, log_file=log_file) as grading:
        if prompts:
            say(f"answers are graded by {', '.join(grading.names(prompts))}")
        for note in (await grading.constants(prompts)).notes:
            say(note)
        yield grading


def gradable_prompts(environment: Environment) -> tuple[Prompt, ...]:
    """Read data.val_file; raise DataError for the first prompt whose answer could not be graded."""
    file = environment.config.data.val_file
    prompts = environment.read_prompts(file).prompts
    require_gradable(prompts, file=file)
    return prompts
