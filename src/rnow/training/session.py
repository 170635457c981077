"""From a project directory to a run that is under way: builds every part in order, closes them all.

    config ─▶ run folder ─▶ chat, tools, prompts ─▶ engines, trainer ─▶ preflight ─▶ loop ─▶ model/

What a user can have got wrong is looked at first; models are loaded last.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from rnow.chat.compare import template_difference
from rnow.config.cautions import few_rollouts
from rnow.config.load import LoadedConfig, teacher_of
from rnow.config.settings import Config
from rnow.config.surroundings import Surroundings
from rnow.engines.vllm.deaths import Deaths
from rnow.errors import Interrupted
from rnow.plan.engine_specs import Serving
from rnow.records import Prompt
from rnow.rollout.attempt import prompt_ids
from rnow.rollout.environment import Environment, open_environment
from rnow.runs.folder import RunDirectory
from rnow.runs.model_folder import write_model_folder
from rnow.runs.resume import check_inputs, check_not_lost, check_resumable, fingerprints
from rnow.runtime.console import sayer
from rnow.runtime.garbage import rare_collections
from rnow.runtime.heartbeat import beating
from rnow.runtime.logs import log_to
from rnow.runtime.signals import StopRequest
from rnow.runtime.trainer_thread import in_trainer_thread
from rnow.tools.env import fixed_variables
from rnow.training.collect import Collector
from rnow.training.gpu_use import watching_gpus
from rnow.training.held_out import HeldOut, held_out_evaluation, open_held_out, verdict_of
from rnow.training.looked_into import FavouriteKeeper, copier
from rnow.training.loop import train
from rnow.training.monitor import Monitor
from rnow.training.parts import Learner, Parts, check_teacher, make_publisher, open_engines
from rnow.training.planned import plan_costs
from rnow.training.steps import prompts_by_step
from rnow.training.trackers.base import RunInfo, flat_settings
from rnow.training.trackers.reports import Reports

MAX_PROBE_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolders:
    """Where the two models lie on this machine; a teacher elsewhere has its tokenizer here."""

    student: Path
    teacher: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One call of `rnow run`."""

    loaded: LoadedConfig
    directory: Path
    run: RunDirectory
    models: ModelFolders
    serving: Serving

    @property
    def config(self) -> Config:
        return self.loaded.config


async def run_session(session: Session, console: Console) -> None:
    """Train to the end, or go on with what the run's folder holds.

    Raises Interrupted where the run was asked to stop, RnowError for everything that went wrong.
    """
    run = session.run
    with run.held(), log_to(run.controller_log), rare_collections():
        session, write_down = _take_up(session, say=sayer(console))
        if not run.has_begun:
            write_down()
        await _run_opened(session, console, write_down)


def _take_up(session: Session, *, say: Callable[[str], None]) -> tuple[Session, Callable[[], None]]:
    """Refuse what would make two runs out of one.

    Returns the session in the surroundings in which the run began, and what writes down what the
    run is made with: of a run that goes on, once it does, so that a call that is refused later
    leaves the records of what was done.
    """
    run, config = session.run, session.config
    resolved = config.model_dump(mode="json")
    inputs = fingerprints(session.directory, config, tokenizer=session.models.student)
    check_not_lost(run)
    if run.has_begun:
        changes = check_resumable(run.read_config(), resolved)
        for change in (*changes, *check_inputs(run.read_inputs(), inputs)):
            say(f"taken over: {change}")
    environ = fixed_variables(session.directory, shell=os.environ, names=config.tools.env)
    now = Surroundings(environ=environ)
    kept = (run.read_surroundings() if run.has_begun else None) or now
    for change in kept.changes(now):
        say(change)

    def write_down() -> None:
        run.write_config(resolved)
        run.write_inputs(inputs)
        run.write_surroundings(kept)

    return replace(session, loaded=replace(session.loaded, surroundings=kept)), write_down


async def _run_opened(session: Session, console: Console, write_down: Callable[[], None]) -> None:
    config, run, say = session.config, session.run, sayer(console)
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(StopRequest(max_time_s=config.trainer.max_time_s))
        log_file = run.logs / "tools.log"
        opening = open_environment(
            session.loaded,
            session.directory,
            student=session.models.student,
            teacher=session.models.teacher,
            log_file=log_file,
        )
        environment = await stop.cut(stack.enter_async_context(opening))
        data = config.data
        file = environment.read_prompts(data.train_file, batch_size=data.batch_size)
        opened = open_held_out(session.loaded, environment, log_file=log_file, say=say)
        held_out = await stop.cut(stack.enter_async_context(opened))
        steps = prompts_by_step(config, file.prompts)
        files = {data.train_file: file.prompts, data.val_file: held_out.prompts}
        told = (*file.notices, *environment.check(files), *_compare(session))
        if environment.tools is not None:
            told = (*told, session.loaded.surroundings.line())
        if (advice := few_rollouts(config)) is not None:
            told = (*told, advice)
        costs = plan_costs(
            config,
            session.directory,
            session.serving.placement,
            steps=steps,
            num_held_out=len(held_out.prompts),
            chat=environment.chat,
            schemas=environment.schemas,
        )
        run.write_plan(costs.as_json())
        for line in (*told, _headline(session, num_steps=len(steps)), *costs.short_lines()):
            say(line)
        monitor = Monitor(console, run=run, num_steps=len(steps))
        await stack.enter_async_context(monitor.showing(on_stop=stop.ask))
        await stack.enter_async_context(watching_gpus(partial(setattr, monitor, "gpus")))
        heartbeat = beating(run.status_file, log_file=run.controller_log, describe=monitor.snapshot)
        await stack.enter_async_context(heartbeat)
        await _train(
            *(session, environment, write_down),
            steps=steps,
            held_out=held_out,
            monitor=monitor,
            stop=stop,
        )


def _compare(session: Session) -> tuple[str, ...]:
    """Tell of a teacher that has other words for a turn."""
    words = template_difference(session.models.student, session.models.teacher)
    return () if words is None else (words,)


def _headline(session: Session, *, num_steps: int) -> str:
    config, teacher = session.config, teacher_of(session.config).path
    tuning = f"LoRA rank {config.model.qlora_rank}" if config.model.tuning == "lora" else "full"
    return (
        f"{session.run.path}: {config.model.path} ({tuning}) learns from {teacher}, "
        f"{num_steps} steps of {config.data.batch_size} x {config.data.group_size} rollouts, "
        f"kl_penalty_coef {config.algorithm.kl_penalty_coef:g}, "
        f"learning rate {config.trainer.learning_rate:g}, on {session.serving.placement.device}. "
        f"Without rewards, adv_estimator {config.algorithm.adv_estimator} has no effect"
    )


async def _train(
    session: Session,
    environment: Environment,
    write_down: Callable[[], None],
    *,
    steps: Sequence[Sequence[Prompt]],
    held_out: HeldOut,
    monitor: Monitor,
    stop: StopRequest,
) -> None:
    """Load the models, check them, run the loop, leave the model behind."""
    config, run, serving = session.config, session.run, session.serving
    models, say, num_steps, deaths = session.models, monitor.say, len(steps), Deaths()
    async with AsyncExitStack() as stack:
        with monitor.stage("starting the engines"):
            opening = open_engines(
                stack, serving, models.student, models.teacher, deaths=deaths, monitor=monitor
            )
            student, scorer, cluster = await stop.cut(opening)
        with monitor.stage("loading the trainer"):
            loading = Learner.open(stack, serving, models.student, run, num_steps, say, cluster)
            learner = await stop.cut(loading)
            first_step = await _go_on(session, learner, num_steps, write_down)
        monitor.reports = stack.enter_context(_reports(session, first_step, say=say))
        probe_ids = prompt_ids(steps[0][0], environment.chat, environment.tools)[:MAX_PROBE_TOKENS]
        with monitor.stage("preflight"):
            teacher = await stop.cut(check_teacher(scorer, serving, probe_ids=probe_ids))
        parts = Parts(
            first_step=first_step,
            steps=steps,
            group_size=config.data.group_size,
            publisher=make_publisher(student, learner, serving, run=run, probe_ids=probe_ids),
            collector=Collector(
                monitor.tally.roll(environment.roll(student), environment.chat),
                monitor.tally.score(teacher.score),
                run=run,
                concurrency=config.rollout.concurrency,
                max_dropped=config.trainer.max_dropped,
                max_waiting=2 * teacher_of(config).concurrency,
                max_lag=config.trainer.max_policy_lag,
                verdict=verdict_of(held_out, environment),
                copies=copier(environment.chat),
            ),
            teacher=teacher,
            keep_favourites=FavouriteKeeper(teacher, run, num=teacher_of(config).num_favourites),
            trainer=learner.trainer,
            evaluate=held_out_evaluation(
                environment, student, monitor, held_out, num_steps=num_steps
            ),
            save=learner.saver,
            gauges=environment.gauges,
            deaths=deaths,
        )
        try:
            await train(parts, monitor=monitor, stop=stop)
        except Interrupted:
            await in_trainer_thread(learner.saver.save_pending)
            raise
        await in_trainer_thread(_finish, session, learner, num_steps, environment.chat.ends.ids)


async def _go_on(
    session: Session, learner: Learner, num_steps: int, write_down: Callable[[], None]
) -> int:
    """Put back the state that was saved last, if any; return the step to go on with."""
    first_step = await in_trainer_thread(learner.saver.restore)
    write_down()
    session.run.rewind(first_step, max_lag=session.config.trainer.max_policy_lag)
    session.run.write_state(step=first_step, num_steps=num_steps, finished=False)
    return first_step


def _reports(session: Session, first_step: int, *, say: Callable[[str], None]) -> Reports:
    """Return what tells the trackers of trainer.report_to; each begins, or goes on, meanwhile."""
    info = RunInfo(
        project=session.loaded.project_name or session.directory.resolve().name,
        name=session.run.path.name,
        folder=session.run.path,
        first_step=first_step,
        settings=flat_settings(session.config.model_dump(mode="json")),
        id=None,
        keep_id=lambda id: None,
        say=say,
    )
    return Reports(session.config.trainer.report_to, info)


def _finish(session: Session, learner: Learner, num_steps: int, ends: Sequence[int]) -> None:
    """Write the model folder, and after it that the run is finished."""
    student, path = session.models.student, session.config.model.path
    write_model_folder(
        session.run.model,
        save=learner.trainer.save,
        base=str(student) if (session.directory / path).is_dir() else path,
        tokenizer=student,
        ends=ends,
        run=session.run,
    )
    session.run.write_state(step=num_steps, num_steps=num_steps, finished=True)
