"""The true loop over devices that are none: a student, a teacher and a trainer that take as long as
they are told, behind the seams of the real ones, and remember what they did."""

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from scored import make_scored
from scripted_engine import ScriptedEngine

from rnow.engines.base import ScoreRequest, Scores
from rnow.engines.vllm.deaths import Deaths
from rnow.records import Batch, Prompt, ScoredTrajectory, Trajectory
from rnow.rollout.attempt import Attempt
from rnow.runs.folder import RunDirectory
from rnow.runtime.signals import StopRequest
from rnow.training.agreement import Agreement
from rnow.training.collect import Collector
from rnow.training.loop import train
from rnow.training.monitor import Monitor
from rnow.training.parts import Parts
from rnow.training.publish import Publisher
from rnow.training.teacher import Teacher

PROBE = [3, 1, 4, 1, 5]
GROUP = 2

UPDATED = {
    "reverse_kl": 0.5,
    "mismatch_kl": 0.0,
    "tokens/action": 4.0,
    "tokens/total": 7.0,
    "trainer/skipped": 0.0,
}


async def _nothing(attempt: Attempt) -> None:
    pass


@dataclass
class Lab:
    """A run of `num_steps` steps of one prompt, two rollouts each, unless said otherwise."""

    folder: Path
    num_steps: int = 3
    lag: int = 1
    first_step: int = 0
    prompts_a_step: int = 1
    concurrency: int = 64
    max_waiting: int = 64
    on_roll: Callable[[Attempt], Awaitable[None]] = _nothing
    on_score: Callable[[int], Awaitable[None]] | None = None
    on_update: Callable[[Batch], None] = lambda batch: None
    update_s: float = 0.0
    save_s: float = 0.0
    log: list[str] = field(default_factory=list)
    rolling: int = 0  # now
    num_scored: dict[int, int] = field(default_factory=dict)  # of each step
    weights: int = 0  # the version that the trainer holds
    said: io.StringIO = field(default_factory=io.StringIO)

    def __post_init__(self) -> None:
        self.weights = self.first_step
        self.run = RunDirectory(self.folder)
        self.run.trajectories(0).parent.mkdir(parents=True, exist_ok=True)
        lab = self

        class Student(ScriptedEngine):
            async def load_policy(self, path: Path, policy_version: int) -> None:
                lab.log.append(f"load {policy_version}")
                await super().load_policy(path, policy_version)

            async def unload_policy(self, policy_version: int) -> None:
                lab.log.append(f"unload {policy_version}")
                await super().unload_policy(policy_version)

        class Judge(ScriptedEngine):
            async def score(self, request: ScoreRequest) -> Scores:
                if lab.on_score is not None:
                    await lab.on_score(len(request.token_ids))
                return await super().score(request)

        self.student = Student([])
        judge = Judge([], logprob=lambda ids: -0.1 * ids[-1])
        self.teacher = Teacher(judge, concurrency=16, tolerance=1e-3)

    async def roll(self, attempt: Attempt) -> Trajectory:
        assert attempt.policy_version in self.student.policies, "what samples is loaded"
        self.rolling += 1
        try:
            await self.on_roll(attempt)
        finally:
            self.rolling -= 1
        return make_scored(attempt.id, policy_version=attempt.policy_version).trajectory

    async def score(self, trajectory: Trajectory) -> ScoredTrajectory:
        scored = await self.teacher.score(trajectory)
        self.num_scored[trajectory.id.step] = self.num_scored.get(trajectory.id.step, 0) + 1
        return scored

    def update(self, batch: Batch) -> dict[str, float]:
        assert self.weights == batch.step
        self.log.append(f"update {batch.step}")
        time.sleep(self.update_s)
        self.on_update(batch)
        self.weights += 1
        return {**UPDATED, "trainer/learning_rate": 1e-4}

    def swap(self) -> None:
        self.log.append("swap")

    def save(self, step: int) -> None:
        self.log.append(f"save {step}")
        time.sleep(self.save_s)

    async def evaluate(self, step: int) -> dict[str, float]:
        assert self.rolling == 0, "an evaluation is alone"
        self.log.append(f"evaluate {step}")
        return {}

    def parts(self) -> Parts:
        prompts = [
            Prompt(index=index, line=index + 1, messages=(), tools=None)
            for index in range(self.prompts_a_step)
        ]
        collector = Collector(
            self.roll,
            self.score,
            run=self.run,
            concurrency=self.concurrency,
            max_dropped=0.0,
            max_waiting=self.max_waiting,
            max_lag=self.lag,
        )
        publisher = Publisher(
            self.student,
            save=lambda folder: folder.mkdir(parents=True, exist_ok=True),
            probe=lambda ids, start: np.full(len(ids) - start, -0.5, dtype=np.float32),
            run=self.run,
            probe_ids=PROBE,
            agreement=Agreement(self.run.probe_file, tolerance=1e-3, allowed=None),
            max_lag=self.lag,
        )

        async def no_favourites(batch: Batch) -> None:
            pass

        return Parts(
            first_step=self.first_step,
            steps=[prompts] * self.num_steps,
            group_size=GROUP,
            publisher=publisher,
            collector=collector,
            teacher=self.teacher,
            keep_favourites=cast(Any, no_favourites),
            trainer=cast(Any, self),
            evaluate=self.evaluate,
            save=self.save,
            gauges=dict,
            deaths=Deaths(),
        )

    async def train(self, *, stop_at: Callable[[StopRequest], None] | None = None) -> None:
        """Run the loop to its end; `stop_at` is given what a signal would ask."""
        console = Console(file=self.said, width=200)
        monitor = Monitor(console, run=self.run, num_steps=self.num_steps)
        await self.teacher.preflight(PROBE, max_context_window=16)
        with StopRequest() as stop:
            if stop_at is not None:
                stop_at(stop)
            await train(self.parts(), monitor=monitor, stop=stop)


def others() -> set[asyncio.Task[Any]]:
    """Return the tasks that are still there beside the one that asks."""
    return asyncio.all_tasks() - {cast(Any, asyncio.current_task())}
