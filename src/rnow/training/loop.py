"""The training loop.

    publish ─▶ roll out, each trajectory scored as it ends ─▶ update ─▶ save ─▶ publish ─▶ …

`step` counts optimizer updates that are done, so the weights before step k are policy version k. A
step is finished when its checkpoint is in place; whatever stops the run before that, the step is
taken up again from its journal.
"""

import asyncio

from rnow.runtime.signals import StopRequest
from rnow.training.metrics import step_metrics
from rnow.training.monitor import Monitor
from rnow.training.parts import Parts


async def train(parts: Parts, *, monitor: Monitor, stop: StopRequest) -> None:
    """Run the steps from `first_step` on, then publish and evaluate what came out.

    Raises Interrupted where the run was asked to stop; all that was done by then is saved.
    """
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
        with monitor.stage("update"):
            # In a thread, so that a signal is heard; awaited to its end, so that it is saved.
            updated = await asyncio.to_thread(parts.trainer.update, collected.batch)
        monitor.finish_step(
            step_metrics(collected),
            parts.gauges(),
            updated,
            evaluated,
            probes,
        )
        parts.publisher.agreement.check_step(step, updated)
        await asyncio.to_thread(parts.save, step + 1)
        parts.deaths.forget()
        stop.check()
    await stop.cut(parts.publisher.publish(len(parts.steps)))
    await stop.cut(parts.evaluate(len(parts.steps)))
