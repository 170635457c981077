"""The training loop.

    publish ─▶ roll out, each trajectory scored as it ends ─▶ update ─▶ save ─▶ publish ─▶ …

`step` counts optimizer updates that are done, so the weights before step k are policy version k. A
step is finished when its checkpoint is in place; whatever stops the run before that, the step is
taken up again from its journal.
"""

import asyncio
from typing import Protocol

from rnow.collect import Collector
from rnow.metrics import step_metrics
from rnow.monitor import Monitor
from rnow.publish import Publisher
from rnow.records import Batch, Prompt
from rnow.rundir import RunDirectory
from rnow.stopping import StopRequest
from rnow.teacher import Teacher
from rnow.trainer import Trainer

__all__ = ["Evaluator", "Saver", "train"]


class Evaluator(Protocol):
    """Evaluates the policy version that the student engine holds, if it is due."""

    async def __call__(self, step: int, *, last: bool) -> dict[str, float]: ...


class Saver(Protocol):
    """Puts the trainer's state after `step` updates on disk."""

    def __call__(self, step: int, *, last: bool) -> None: ...


async def train(
    *,
    first_step: int,
    steps: list[list[Prompt]],
    group_size: int,
    publisher: Publisher,
    collector: Collector,
    teacher: Teacher,
    trainer: Trainer,
    evaluator: Evaluator,
    saver: Saver,
    monitor: Monitor,
    stop: StopRequest,
) -> None:
    """Run `steps` from `first_step` on, then publish and evaluate what came out.

    Raises Interrupted where the run was asked to stop; all that was done by then is saved.
    """
    for step in range(first_step, len(steps)):
        monitor.begin_step(step)
        with monitor.stage("publish"):
            probe = await publisher.publish(step)
        with monitor.stage("eval"):
            evaluated = await stop.cut(evaluator(step, last=False))
        with monitor.stage("health"):
            await teacher.check_health()
        with monitor.stage("rollout", total=len(steps[step]) * group_size):
            collected = await stop.cut(
                collector.collect(
                    step, steps[step], group_size=group_size, on_scored=monitor.advance
                )
            )
        with monitor.stage("update"):
            # In a thread, so that a signal is heard; awaited to its end, so that it is saved.
            updated = await asyncio.to_thread(trainer.update, collected.batch)
        monitor.finish_step(
            {**step_metrics(collected), **updated, **evaluated, "publish/probe": probe}
        )
        await asyncio.to_thread(saver, step + 1, last=step + 1 == len(steps))
        stop.check()
    await publisher.publish(len(steps))
    await stop.cut(evaluator(len(steps), last=True))
