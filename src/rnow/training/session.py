"""From a project directory to a run that is under way: builds every part in order, closes them all.

    config ─▶ run folder ─▶ chat, tools, prompts ─▶ engines, trainer ─▶ preflight ─▶ loop ─▶ model/

What a user can have got wrong is looked at first; models are loaded last.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from rnow.chat.compare import template_difference
from rnow.chat.vocabulary import compare_token_maps, token_map
from rnow.config.load import LoadedConfig
from rnow.config.settings import Config, TeacherSettings
from rnow.engines.base import Engine
from rnow.engines.opening import open_engine
from rnow.engines.spec import EngineSpec
from rnow.engines.vllm.deaths import Deaths
from rnow.errors import Interrupted, RnowError, TeacherError
from rnow.plan.engine_specs import (
    Serving,
    dtype_tolerance,
    role_tolerance,
    sampling_spec,
    scoring_spec,
)
from rnow.records import Prompt
from rnow.rollout.environment import Environment, open_environment
from rnow.runs.folder import RunDirectory
from rnow.runs.model_folder import write_model_folder
from rnow.runs.resume import check_inputs, check_resumable, fingerprints
from rnow.runtime.garbage import rare_collections
from rnow.runtime.heartbeat import beating
from rnow.runtime.logs import log_to
from rnow.runtime.signals import StopRequest
from rnow.training.collect import Collector
from rnow.training.held_out import HeldOutEvaluator, held_out_prompts
from rnow.training.loop import Parts, train
from rnow.training.monitor import Monitor
from rnow.training.parts import Learner
from rnow.training.publish import Publisher
from rnow.training.steps import prompts_by_step
from rnow.training.teacher import Teacher

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
    def device(self) -> str:
        """Where the trainer is: cuda or cpu."""
        return self.serving.placement.device

    @property
    def config(self) -> Config:
        return self.loaded.config

    @property
    def base_name(self) -> str:
        """The student's hub id, or its folder."""
        path = self.config.model.path
        return str(self.models.student) if (self.directory / path).is_dir() else path

    @property
    def teacher(self) -> TeacherSettings:
        assert self.config.teacher is not None, "distill has a teacher; the config was checked"
        return self.config.teacher


async def run_session(session: Session, console: Console) -> None:
    """Train to the end, or go on with what the run's folder holds.

    Raises Interrupted where the run was asked to stop, RnowError for everything that went wrong.
    """
    run = session.run
    run.open()
    try:
        with log_to(run.controller_log), rare_collections():
            await _run_opened(session, console)
    finally:
        run.close()


async def _run_opened(session: Session, console: Console) -> None:
    config, run = session.config, session.run
    resolved = config.model_dump(mode="json")
    inputs = fingerprints(session.directory, config, tokenizer=session.models.student)
    if run.has_begun:
        changes = check_resumable(run.read_config(), resolved)
        for change in (*changes, *check_inputs(run.read_inputs(), inputs)):
            console.print(f"taken over: {change}", highlight=False, markup=False, soft_wrap=True)
    run.write_config(resolved)
    run.write_inputs(inputs)
    stop = StopRequest(max_time_s=config.trainer.max_time_s)
    stop.listen()
    try:
        async with open_environment(
            session.loaded,
            session.directory,
            student=session.models.student,
            log_file=run.logs / "tools.log",
        ) as environment:
            file = environment.read_prompts(
                config.data.train_file, batch_size=config.data.batch_size
            )
            prompts = file.prompts
            held_out = held_out_prompts(environment)
            steps = prompts_by_step(config, prompts)
            for notice in (*file.notices, *environment.check(prompts[0]), *_compare(session)):
                console.print(notice, highlight=False, markup=False, soft_wrap=True)
            headline = _headline(session, num_steps=len(steps))
            console.print(headline, highlight=False, markup=False, soft_wrap=True)
            with Monitor(console, run=run, num_steps=len(steps)) as monitor:
                async with beating(
                    run.status_file, log_file=run.controller_log, describe=monitor.snapshot
                ):
                    await _train(
                        session,
                        environment,
                        steps=steps,
                        held_out=held_out,
                        monitor=monitor,
                        stop=stop,
                    )
    finally:
        stop.forget()


async def _train(
    session: Session,
    environment: Environment,
    *,
    steps: Sequence[Sequence[Prompt]],
    held_out: tuple[Prompt, ...],
    monitor: Monitor,
    stop: StopRequest,
) -> None:
    config, run, num_steps = session.config, session.run, len(steps)
    deaths = Deaths()
    async with AsyncExitStack() as stack:
        with monitor.stage("starting the engines"):
            opening = _open_engines(stack, session, deaths=deaths, monitor=monitor)
            student, teacher_engine = await stop.cut(opening)
        with monitor.stage("loading the trainer"):
            learner = await asyncio.to_thread(
                Learner.load,
                config,
                student=session.models.student,
                device=session.device,
                run=run,
                num_steps=num_steps,
            )
        first_step = learner.saver.restore(learner.trainer, say=monitor.say)
        run.rewind(first_step)
        run.write_state(step=first_step, num_steps=num_steps, finished=False)
        probe_ids = environment.render(steps[0][0])[:MAX_PROBE_TOKENS]
        with monitor.stage("preflight"):
            teacher = await _checked_teacher(
                session, teacher_engine, probe_ids=probe_ids, stop=stop
            )
        parts = Parts(
            first_step=first_step,
            steps=steps,
            group_size=config.data.group_size,
            publisher=_publisher(session, student, learner=learner, probe_ids=probe_ids),
            collector=Collector(
                environment.roll(student),
                teacher.score,
                run=run,
                concurrency=config.rollout.concurrency,
                max_dropped=config.trainer.max_dropped,
            ),
            teacher=teacher,
            trainer=learner.trainer,
            evaluator=HeldOutEvaluator(
                environment, student, monitor, prompts=held_out, num_steps=num_steps
            ),
            saver=learner.saver,
            gauges=environment.gauges,
            deaths=deaths,
        )
        try:
            await train(parts, monitor=monitor, stop=stop)
        except Interrupted:
            await asyncio.to_thread(learner.saver.save_pending)
            raise
        _finish(session, learner, num_steps=num_steps)


def _finish(session: Session, learner: Learner, *, num_steps: int) -> None:
    """Write the model folder, and after it that the run is finished."""
    write_model_folder(
        session.run.model,
        policy=learner.policy,
        base=session.base_name,
        tokenizer=session.models.student,
        run=session.run,
    )
    session.run.write_state(step=num_steps, num_steps=num_steps, finished=True)


def _compare(session: Session) -> tuple[str, ...]:
    """Refuse a teacher that means something else by an id; tell of other words for a turn."""
    models = session.models
    difference = compare_token_maps(token_map(models.student), token_map(models.teacher))
    if difference is not None:
        raise TeacherError(f"teacher.path {session.teacher.path}: {difference}")
    words = template_difference(models.student, models.teacher)
    return () if words is None else (words,)


def _headline(session: Session, *, num_steps: int) -> str:
    config = session.config
    tuning = f"LoRA rank {config.model.qlora_rank}" if config.model.tuning == "lora" else "full"
    return (
        f"{session.run.path}: {config.model.path} ({tuning}) learns from {session.teacher.path}, "
        f"{num_steps} steps of {config.data.batch_size} x {config.data.group_size} rollouts, "
        f"kl_penalty_coef {config.algorithm.kl_penalty_coef:g}, "
        f"learning rate {config.trainer.learning_rate:g}, on {session.device}. "
        f"Without rewards, adv_estimator {config.algorithm.adv_estimator} has no effect"
    )


async def _open_engines(
    stack: AsyncExitStack, session: Session, *, deaths: Deaths, monitor: Monitor
) -> tuple[Engine, Engine]:
    """Open the student's and the teacher's engine; `stack` closes them."""
    serving = session.serving
    full = session.config.model.tuning == "full"
    specs = (
        sampling_spec(
            serving,
            "student",
            session.models.student,
            lora_rank=None if full else session.config.model.qlora_rank,
            takes_models=full,
        ),
        scoring_spec(serving, session.models.teacher),
    )

    async def open_one(spec: EngineSpec) -> Engine:
        engine = await open_engine(
            spec,
            deaths=deaths,
            say=monitor.say,
            on_progress=partial(monitor.waiting, spec.role),
        )
        stack.push_async_callback(engine.aclose)
        return engine

    plan = serving.placement.plan
    if not all(spec.servers for spec in specs) or (plan is not None and plan.is_shared):
        # Two models that are read at once take twice the memory, and vLLM measures what is free.
        return await open_one(specs[0]), await open_one(specs[1])
    try:
        async with asyncio.TaskGroup() as group:
            student, teacher = (group.create_task(open_one(spec)) for spec in specs)
    except* RnowError as errors:
        raise errors.exceptions[0] from errors
    return student.result(), teacher.result()


async def _checked_teacher(
    session: Session, engine: Engine, *, probe_ids: list[int], stop: StopRequest
) -> Teacher:
    """Return the teacher once it has passed its preflight."""
    config = session.config
    teacher = Teacher(
        engine,
        concurrency=session.teacher.concurrency,
        tolerance=role_tolerance(config, session.serving.placement, "teacher"),
    )
    window = config.rollout.max_context_window
    await stop.cut(teacher.preflight(probe_ids, max_context_window=window))
    return teacher


def _publisher(
    session: Session, engine: Engine, *, learner: Learner, probe_ids: list[int]
) -> Publisher:
    config = session.config
    exact = max(
        role_tolerance(config, session.serving.placement, "student"),
        dtype_tolerance(config.model.dtype, device=session.device),
    )
    return Publisher(
        engine,
        save=learner.policy.save,
        probe=lambda ids, start: learner.trainer.probe_logprobs(ids, start=start),
        run=session.run,
        probe_ids=probe_ids,
        tolerance=config.engine.probe_tolerance or exact,
    )
