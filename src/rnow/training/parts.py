"""What a run is made of, and how each part is made: session.py says when, loop.py what they do."""

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rnow.cluster.starting import opened_cluster_of, starter_of
from rnow.config.load import teacher_of
from rnow.config.settings import Config
from rnow.engines.base import Engine
from rnow.engines.opening import open_engine
from rnow.engines.spec import EngineSpec
from rnow.engines.vllm.deaths import Deaths
from rnow.learner.student import Student
from rnow.plan.engine_specs import (
    RankSpec,
    Serving,
    adapter_dtype,
    dtype_tolerance,
    rank_specs,
    role_tolerance,
    sampling_spec,
    scoring_spec,
)
from rnow.plan.workload import weights_are_cut
from rnow.records import Batch, FloatArray, Prompt
from rnow.runs.bad import keep_bad_batch
from rnow.runs.folder import RunDirectory
from rnow.runs.saving import Saver, TrainedState
from rnow.runtime.side_by_side import side_by_side
from rnow.runtime.trainer_thread import in_trainer_thread
from rnow.training.agreement import Agreement
from rnow.training.collect import Collector
from rnow.training.looked_into import keep_logprobs
from rnow.training.monitor import Monitor
from rnow.training.publish import Publisher
from rnow.training.ranks.places import PROGRAM, RankPlace, RanksHere
from rnow.training.ranks.processes import RankSettings
from rnow.training.ranks.student import RankedStudent
from rnow.training.teacher import Teacher

if TYPE_CHECKING:
    from rnow.cluster.connect import Cluster


class Trainee(TrainedState, Protocol):
    """The student in training, in this process or spread over ranks. All calls block."""

    def update(self, batch: Batch) -> dict[str, float]:
        """Take one step; return its metrics."""
        ...

    def probe_logprobs(self, token_ids: Sequence[int], *, start: int) -> FloatArray:
        """Return log p(token_ids[i] | token_ids[:i]) for i >= start >= 1, nats."""
        ...

    def save(self, folder: Path, *, adapter_dtype: str | None = None) -> None:
        """Write what an engine loads; an adapter in that format."""
        ...

    def swap(self) -> None:
        """Exchange the weights with those before the last update (trainer.max_policy_lag)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What a run trains, and what saves it."""

    trainer: Trainee
    saver: Saver

    @classmethod
    async def open(
        cls,
        stack: AsyncExitStack,
        serving: Serving,
        student: Path,
        run: RunDirectory,
        num_steps: int,
        say: Callable[[str], None],
        cluster: "Cluster | None" = None,
    ) -> "Learner":
        """Load the network from the folder `student`; takes seconds to minutes.

        In this process, or in one for each rank, which `stack` ends.
        """
        config, device = serving.config, serving.placement.device
        trainer: Trainee
        if specs := rank_specs(serving):
            settings = RankSettings(
                config=config,
                student=student,
                device=device,
                run=run,
                num_steps=num_steps,
                is_sharded=weights_are_cut(config),
                environments=[spec.environment for spec in specs],
                place=_place_of(specs, student, run, cluster),
            )
            ranked = await RankedStudent.open(settings, say=say)
            stack.push_async_callback(ranked.aclose)
            trainer = ranked
        else:
            load = partial(_load_here, config, run=run, num_steps=num_steps, say=say)
            trainer = await in_trainer_thread(load, student=student, device=device)
        saver = Saver(
            run,
            state=trainer,
            tuning=config.model.tuning,
            settings=config.trainer,
            num_steps=num_steps,
            say=say,
        )
        return cls(trainer=trainer, saver=saver)


def _place_of(
    specs: Sequence[RankSpec], student: Path, run: RunDirectory, cluster: "Cluster | None"
) -> RankPlace:
    nodes = [spec.node for spec in specs if spec.node is not None]
    if not nodes:
        return RanksHere(num=len(specs), run=run.path, logs=run.logs)
    from rnow.cluster.ranks import RanksOnNodes

    assert cluster is not None, "a plan names machines where there is a cluster"
    folder, model = run.path.absolute(), student.absolute()
    return RanksOnNodes(cluster, nodes, program=PROGRAM, student=model, run=folder, logs=run.logs)


def _load_here(
    config: Config,
    *,
    student: Path,
    device: Literal["cuda", "cpu"],
    run: RunDirectory,
    num_steps: int,
    say: Callable[[str], None],
) -> Student:
    def keep(batch: Batch, reason: str) -> None:
        save = partial(loaded.save_checkpoint, step=batch.step, scalars={})
        is_small = config.model.tuning == "lora"
        say(keep_bad_batch(run, batch, reason, save_weights=save if is_small else None))

    loaded = Student.load(
        config,
        student=student,
        device=device,
        num_steps=num_steps,
        on_bad_numbers=keep,
        on_logprobs=partial(keep_logprobs, run),
    )
    return loaded


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
    trainer: Trainee
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
) -> tuple[Engine, Engine, "Cluster | None"]:
    """Open the engines of the models in two folders, and the machines that they are on, if those
    are several; `stack` closes them.
    """
    model = serving.config.model
    full = model.tuning == "full"
    rank = None if full else model.qlora_rank
    data = serving.config.data
    num = min(data.batch_size * data.group_size, serving.config.rollout.concurrency)
    specs = (
        sampling_spec(
            serving,
            "student",
            student,
            lora_rank=rank,
            is_trained=True,
            takes_models=full,
            num_rollouts=num,
        ),
        scoring_spec(serving, teacher),
    )

    cluster = await stack.enter_async_context(opened_cluster_of(serving))

    async def open_one(spec: EngineSpec) -> Engine:
        on_progress = partial(monitor.waiting, spec.role)
        engine = await open_engine(
            spec, deaths=deaths, say=monitor.say, on_progress=on_progress, start=starter_of(cluster)
        )
        stack.push_async_callback(engine.aclose)
        return engine

    plan = serving.placement.plan
    if not all(spec.servers for spec in specs) or (plan is not None and plan.is_shared):
        # Two models that are read at once take twice the memory, and vLLM measures what is free.
        return await open_one(specs[0]), await open_one(specs[1]), cluster
    sampler, scorer = await side_by_side(*map(open_one, specs))
    return sampler, scorer, cluster


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
    allowed = config.engine.probe_tolerance
    return Publisher(
        engine,
        save=partial(learner.trainer.save, adapter_dtype=adapter_dtype(serving)),
        probe=lambda ids, start: learner.trainer.probe_logprobs(ids, start=start),
        run=run,
        probe_ids=probe_ids,
        agreement=Agreement(run.probe_file, tolerance=allowed or exact, allowed=allowed),
        max_lag=config.trainer.max_policy_lag,
    )
