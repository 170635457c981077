"""The training loop.

    publish ─▶ roll out, each trajectory scored as it ends ─▶ update ─▶ save ─▶ publish ─▶ …

With trainer.max_policy_lag 1 the rollouts of step k + 1 begin when those of step k have ended, and
go on beside what the teacher still scores of step k and beside update k. All of them are sampled
from version k, in every run, so nothing that is sampled depends on which of these is faster:

    version k is published, ─┬─▶ roll out k + 1 on k ───────────────┬─▶ evaluate k + 1 ─┬─▶ …
    step k has rolled out    └─▶ score ─▶ update k ─▶ save, publish ┘                   └─▶ …

`step` counts optimizer updates that are done, so the weights before step k are policy version k. A
step is finished when its checkpoint is in place; whatever stops the run before that, the step is
taken up again from its journal, and so is the one whose rollouts had begun.
"""

from collections.abc import Mapping

from rnow.runtime.kill_points import point
from rnow.runtime.signals import StopRequest
from rnow.runtime.trainer_thread import in_trainer_thread
from rnow.training.ahead import Ahead
from rnow.training.collect import Collected
from rnow.training.metrics import step_metrics
from rnow.training.monitor import Monitor
from rnow.training.parts import Parts


async def train(parts: Parts, *, monitor: Monitor, stop: StopRequest) -> None:
    """Run the steps from `first_step` on, then publish and evaluate what came out.

    Raises Interrupted where the run was asked to stop; all that was done by then is saved.
    """
    steps = _overlapping if parts.collector.max_lag else _in_turn
    await steps(parts, monitor=monitor, stop=stop)
    await stop.cut(parts.publisher.publish(len(parts.steps)))
    await stop.cut(parts.evaluate(len(parts.steps)))


async def _in_turn(parts: Parts, *, monitor: Monitor, stop: StopRequest) -> None:
    for step in range(parts.first_step, len(parts.steps)):
        prompts = parts.steps[step]
        monitor.begin_step(step)
        with monitor.stage("publish"):
            probes = await stop.cut(parts.publisher.publish(step))
        with monitor.stage("eval"):
            evaluated = await stop.cut(parts.evaluate(step))
        with monitor.stage("health"):
            await stop.cut(parts.teacher.check_health())
        # Its seconds are those of `collected`: until the last rollout, and from there on.
        with monitor.stage("rollout", total=len(prompts) * parts.group_size, is_timed=False):
            rollouts = parts.collector.collect(
                step, prompts, group_size=parts.group_size, on_scored=monitor.advance
            )
            collected = await stop.cut(rollouts)
        with monitor.stage("favourites"):
            await stop.cut(parts.keep_favourites(collected.batch))
        await _learn(parts, collected, {**evaluated, **probes}, monitor=monitor)
        stop.check()


async def _overlapping(parts: Parts, *, monitor: Monitor, stop: StopRequest) -> None:
    if parts.first_step == len(parts.steps):
        return
    with monitor.stage("publish"):
        await _publish_sampler(parts)
    stop.check()
    async with Ahead(parts, monitor=monitor, stop=stop) as ahead:
        ahead.begin(parts.first_step)
        for step in range(parts.first_step, len(parts.steps)):
            monitor.begin_step(step)
            with monitor.stage("publish"):
                probes = await stop.cut(parts.publisher.publish(step))
            point("ahead/published")
            with monitor.stage("rollout", is_timed=False):
                await ahead.rolled()
            # Nothing rolls out from here until the next step's begin: an evaluation is alone.
            with monitor.stage("eval"):
                evaluated = await stop.cut(parts.evaluate(step))
            with monitor.stage("health"):
                await stop.cut(parts.teacher.check_health())
            if step + 1 < len(parts.steps):
                ahead.begin(step + 1)
            with monitor.stage("teacher", is_timed=False):
                collected = await ahead.batch()
            await _learn(parts, collected, {**evaluated, **probes}, monitor=monitor)
            ahead.check()
            stop.check()


async def _publish_sampler(parts: Parts) -> None:
    """Publish what samples the first step: of a run that goes on, the weights before its last."""
    version = parts.collector.sampled_from(parts.first_step)
    if version == parts.first_step:
        await parts.publisher.publish(version)
        return
    await in_trainer_thread(parts.trainer.swap)
    await parts.publisher.publish(version)
    await in_trainer_thread(parts.trainer.swap)
    point("former/published")


async def _learn(
    parts: Parts, collected: Collected, measured: Mapping[str, float], *, monitor: Monitor
) -> None:
    """Update on a batch, write its line, save."""
    with monitor.stage("update"):
        # In a thread, so that a signal is heard; awaited to its end, so that it is saved.
        updated = await in_trainer_thread(parts.trainer.update, collected.batch)
    monitor.finish_step(step_metrics(collected), parts.gauges(), updated, measured)
    parts.publisher.agreement.check_step(collected.batch.step, updated)
    await in_trainer_thread(parts.save, collected.batch.step + 1)
    parts.deaths.forget()
