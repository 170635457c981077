"""From a project directory to a run that is under way: builds every part in order, closes them all.

    config ─▶ run folder ─▶ chat, tools, prompts ─▶ engines, trainer ─▶ preflight ─▶ loop ─▶ model/

What a user can have got wrong is looked at first; models are loaded last.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from rnow.collect import Collector
from rnow.config import LoadedConfig
from rnow.data import prompt_order
from rnow.engines.base import Engine
from rnow.engines.local import LocalEngine
from rnow.environment import Environment, open_environment
from rnow.evaluate import Evaluation, evaluate
from rnow.logs import log_to
from rnow.loop import Parts, train
from rnow.model_folder import write_model_folder
from rnow.monitor import Monitor
from rnow.objective import ObjectiveSettings
from rnow.policy import Policy, PolicySettings
from rnow.publish import Publisher
from rnow.records import Prompt, RolloutId, Trajectory
from rnow.resume import check_resumable
from rnow.rundir import RunDirectory
from rnow.saving import Saver
from rnow.settings import Config, TeacherSettings
from rnow.stopping import StopRequest
from rnow.teacher import Teacher
from rnow.trainer import Trainer, TrainerSettings

__all__ = ["ModelFolders", "Session", "run_session"]

MAX_PROBE_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolders:
    """Where the two models lie on this machine."""

    student: Path
    teacher: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One call of `rnow run`."""

    loaded: LoadedConfig
    directory: Path
    run: RunDirectory
    models: ModelFolders

    @property
    def config(self) -> Config:
        return self.loaded.config

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
        with log_to(run.logs / "controller.log"):
            await _run_opened(session, console)
    finally:
        run.close()


async def _run_opened(session: Session, console: Console) -> None:
    config, run = session.config, session.run
    resolved = config.model_dump(mode="json")
    if run.config_file.exists():
        for change in check_resumable(run.read_config(), resolved):
            console.print(f"taken over: {change}", highlight=False, soft_wrap=True)
    run.write_config(resolved)
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
            steps = _steps(config, prompts)
            checked = environment.chat.check(prompts[0].messages, environment.schemas)
            for notice in (*file.notices, *checked):
                console.print(notice, highlight=False, markup=False, soft_wrap=True)
            with Monitor(console, run=run, num_steps=len(steps)) as monitor:
                await _train(session, environment, steps=steps, monitor=monitor, stop=stop)
    finally:
        stop.forget()


async def _train(
    session: Session,
    environment: Environment,
    *,
    steps: Sequence[Sequence[Prompt]],
    monitor: Monitor,
    stop: StopRequest,
) -> None:
    config, run = session.config, session.run
    student, teacher_engine = await load_engines(session)
    try:
        with monitor.stage("loading the trainer"):
            policy = await asyncio.to_thread(Policy.load, _policy_settings(session))
        saver = Saver(run, policy=policy, settings=config.trainer, num_steps=len(steps))
        trainer = Trainer(
            policy,
            settings=_trainer_settings(config, total_steps=len(steps)),
            objective=_objective_settings(config),
            on_bad_numbers=saver.keep_bad_batch,
        )
        first_step = saver.restore(trainer, say=monitor.say)
        run.rewind(first_step)
        run.write_state(step=first_step, num_steps=len(steps), finished=False)
        teacher = Teacher(
            teacher_engine,
            concurrency=session.teacher.concurrency,
            tolerance=_tolerance(config, session.teacher.dtype),
            timeout_s=config.engine.request_timeout_s,
        )
        probe_ids = environment.render(steps[0][0])[:MAX_PROBE_TOKENS]
        with monitor.stage("preflight"):
            await stop.cut(
                teacher.preflight(probe_ids, max_context_window=config.rollout.max_context_window)
            )
        parts = Parts(
            first_step=first_step,
            steps=steps,
            group_size=config.data.group_size,
            publisher=Publisher(
                student,
                save=policy.save,
                probe=lambda ids, start: trainer.probe_logprobs(ids, start=start),
                run=run,
                probe_ids=probe_ids,
                tolerance=_tolerance(config, config.engine.dtype),
            ),
            collector=Collector(
                environment.roll(student, seed=config.seed),
                teacher.score,
                run=run,
                concurrency=config.rollout.concurrency,
                max_dropped=config.trainer.max_dropped,
            ),
            teacher=teacher,
            trainer=trainer,
            evaluator=_Evaluator(session, environment, student, monitor, num_steps=len(steps)),
            saver=saver,
        )
        await train(parts, monitor=monitor, stop=stop)
        write_model_folder(run.model, policy=policy, tokenizer=session.models.student, run=run)
        run.write_state(step=len(steps), num_steps=len(steps), finished=True)
    finally:
        await student.aclose()
        await teacher_engine.aclose()


async def load_engines(session: Session) -> tuple[Engine, Engine]:
    """Load student and teacher, one after the other: both at once would need twice the memory."""
    config = session.config
    student = await asyncio.to_thread(
        LocalEngine.load,
        session.models.student,
        dtype=config.engine.dtype,
        request_timeout_s=config.engine.request_timeout_s,
    )
    teacher = await asyncio.to_thread(
        LocalEngine.load,
        session.models.teacher,
        dtype=session.teacher.dtype,
        request_timeout_s=config.engine.request_timeout_s,
    )
    return student, teacher


class _Evaluator:
    """Evaluates the student on data.val_file, greedily, every trainer.eval_step steps and last."""

    def __init__(
        self,
        session: Session,
        environment: Environment,
        engine: Engine,
        monitor: Monitor,
        *,
        num_steps: int,
    ) -> None:
        self._every = session.config.trainer.eval_step
        self._num_steps = num_steps
        self._environment = environment
        self._monitor = monitor
        self._concurrency = session.config.rollout.concurrency
        self._roll = environment.roll(engine, seed=session.config.seed, temperature=0.0)
        self._prompts: tuple[Prompt, ...] = ()
        val_file = session.config.data.val_file
        # Without the file nothing is evaluated, which the config's loader has said.
        if self._every and (session.directory / val_file).exists():
            self._prompts = environment.read_prompts(val_file).prompts

    async def __call__(self, step: int) -> dict[str, float]:
        due = self._prompts and (step % self._every == 0 or step == self._num_steps)
        if not due:
            return {}
        evaluation = await self._evaluate(step)
        self._monitor.record_evaluation(step, evaluation.as_json())
        return {"eval/accuracy": evaluation.accuracy, "eval/format_ok": evaluation.format_ok}

    async def _evaluate(self, policy_version: int) -> Evaluation:
        async def roll(prompt: Prompt, id: RolloutId) -> Trajectory:
            return await self._roll(prompt, id, policy_version)

        return await evaluate(
            self._prompts, roll, chat=self._environment.chat, concurrency=self._concurrency
        )


def _steps(config: Config, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    order = prompt_order(
        len(prompts),
        batch_size=config.data.batch_size,
        num_epochs=config.trainer.num_epochs,
        seed=config.seed,
    )
    return [[prompts[index] for index in indices] for indices in order][: config.trainer.max_steps]


def _policy_settings(session: Session) -> PolicySettings:
    model = session.config.model
    return PolicySettings(
        path=str(session.models.student),
        tuning=model.tuning,
        qlora_rank=model.qlora_rank,
        qlora_alpha=model.qlora_alpha,
        dtype=model.dtype,
        activation_checkpointing=session.config.trainer.activation_checkpointing,
        seed=session.config.seed,
    )


def _trainer_settings(config: Config, *, total_steps: int) -> TrainerSettings:
    trainer = config.trainer
    return TrainerSettings(
        total_steps=total_steps,
        learning_rate=trainer.learning_rate,
        weight_decay=trainer.weight_decay,
        warmup_steps=trainer.warmup_steps,
        schedule=trainer.schedule,
        max_grad_norm=trainer.max_grad_norm,
        max_tokens_per_micro_batch=trainer.max_tokens_per_micro_batch,
    )


def _objective_settings(config: Config) -> ObjectiveSettings:
    algorithm = config.algorithm
    return ObjectiveSettings(
        loss_fn=algorithm.loss_fn,
        kl_penalty_coef=algorithm.kl_penalty_coef,
        kl_clip=algorithm.kl_clip,
        kl_discount=algorithm.kl_discount,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        ratio_max=algorithm.ratio_max,
    )


def _tolerance(config: Config, dtype: str) -> float:
    """Return how many nats two views of the same weights may be apart."""
    if config.engine.probe_tolerance is not None:
        return config.engine.probe_tolerance
    return 0.001 if dtype in ("auto", "float32", "float64") else 0.05
