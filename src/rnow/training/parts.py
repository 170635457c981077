"""What a run is made of, and how each part is made: session.py says when, loop.py what they do."""

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rnow.config.load import teacher_of
from rnow.config.settings import Config
from rnow.engines.base import Engine
from rnow.engines.opening import open_engine
from rnow.engines.spec import EngineSpec
from rnow.engines.vllm.deaths import Deaths
from rnow.learner.policy import Policy
from rnow.learner.trainer import Trainer
from rnow.plan.engine_specs import (
    Serving,
    adapter_dtype,
    dtype_tolerance,
    role_tolerance,
    sampling_spec,
    scoring_spec,
)
from rnow.records import Batch, Prompt
from rnow.runs.folder import RunDirectory
from rnow.runs.saving import Saver
from rnow.runtime.side_by_side import side_by_side
from rnow.training.collect import Collector
from rnow.training.looked_into import keep_logprobs
from rnow.training.monitor import Monitor
from rnow.training.publish import Publisher
from rnow.training.teacher import Teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What a run trains: three parts that share the weights."""

    policy: Policy
    trainer: Trainer
    saver: Saver

    @classmethod
    def load(
        cls, config: Config, *, student: Path, device: str, run: RunDirectory, num_steps: int
    ) -> "Learner":
        """Load the network from the folder `student`; takes seconds to minutes."""
        policy = Policy.load(
            student,
            config.model,
            device=device,
            seed=config.seed,
            activation_checkpointing=config.trainer.activation_checkpointing,
            window=config.rollout.max_context_window,
        )
        saver = Saver(run, policy=policy, settings=config.trainer, num_steps=num_steps)
        trainer = Trainer(
            policy,
            settings=config.trainer,
            algorithm=config.algorithm,
            num_steps=num_steps,
            on_bad_numbers=saver.keep_bad_batch,
            on_logprobs=partial(keep_logprobs, run),
        )
        return cls(policy=policy, trainer=trainer, saver=saver)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All that the loop works with, started and checked."""

    first_step: int
    steps: Sequence[Sequence[Prompt]]  # the prompts of each step of the run
    group_size: int
    publisher: Publisher
    collector: Collector
    teacher: Teacher
    keep_favourites: Callable[[Batch], Coroutine[Any, Any, None]]  # the teacher's, of a few
    trainer: Trainer
    # Evaluates the policy version that the student's engine holds, if that is due; its figures.
    evaluate: Callable[[int], Coroutine[Any, Any, dict[str, float]]]
    save: Callable[[int], None]  # the trainer's state after so many steps, to disk
    gauges: Callable[[], dict[str, float]]  # counts over the whole run
    deaths: Deaths  # of servers, since a step was last finished


async def open_engines(
    stack: AsyncExitStack,
    serving: Serving,
    student: Path,
    teacher: Path,
    *,
    deaths: Deaths,
    monitor: Monitor,
) -> tuple[Engine, Engine]:
    """Open the engines of the models in two folders; `stack` closes them."""
    model = serving.config.model
    full = model.tuning == "full"
    rank = None if full else model.qlora_rank
    specs = (
        sampling_spec(serving, "student", student, lora_rank=rank, takes_models=full),
        scoring_spec(serving, teacher),
    )

    async def open_one(spec: EngineSpec) -> Engine:
        on_progress = partial(monitor.waiting, spec.role)
        engine = await open_engine(spec, deaths=deaths, say=monitor.say, on_progress=on_progress)
        stack.push_async_callback(engine.aclose)
        return engine

    plan = serving.placement.plan
    if not all(spec.servers for spec in specs) or (plan is not None and plan.is_shared):
        # Two models that are read at once take twice the memory, and vLLM measures what is free.
        return await open_one(specs[0]), await open_one(specs[1])
    sampler, scorer = await side_by_side(*map(open_one, specs))
    return sampler, scorer


async def check_teacher(engine: Engine, serving: Serving, *, probe_ids: Sequence[int]) -> Teacher:
    """Return the teacher once it has passed its preflight."""
    config = serving.config
    teacher = Teacher(
        engine,
        concurrency=teacher_of(config).concurrency,
        tolerance=role_tolerance(config, serving.placement, "teacher"),
    )
    await teacher.preflight(probe_ids, max_context_window=config.rollout.max_context_window)
    return teacher


def make_publisher(
    engine: Engine,
    learner: Learner,
    serving: Serving,
    *,
    run: RunDirectory,
    probe_ids: Sequence[int],
) -> Publisher:
    """Return what brings the learner's weights to the student's engine, and probes them there."""
    config, placement = serving.config, serving.placement
    exact = max(
        role_tolerance(config, placement, "student"),
        dtype_tolerance(config.model.dtype, device=placement.device),
    )
    return Publisher(
        engine,
        save=partial(learner.policy.save, adapter_dtype=adapter_dtype(serving)),
        probe=lambda ids, start: learner.trainer.probe_logprobs(ids, start=start),
        run=run,
        probe_ids=probe_ids,
        tolerance=config.engine.probe_tolerance or exact,
        max_lag=config.trainer.max_policy_lag,
    )
