"""New weights to the engine that samples, and proof that they arrived.

The trainer writes its weights as files, the engine loads those files, and then both are asked for
the log-probabilities of one fixed sequence. Sampling from stale or half-loaded weights is
otherwise invisible: the loss stays smooth and learns nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rnow.deadline import within
from rnow.engines.base import Engine
from rnow.errors import PublicationError
from rnow.records import FloatArray
from rnow.rundir import RunDirectory

__all__ = ["Publisher"]

TIMEOUT_S = 600.0


class Publisher:
    """Publishes one version after another; the engine keeps the newest only."""

    def __init__(
        self,
        engine: Engine,
        *,
        save: Callable[[Path], None],
        probe: Callable[[list[int], int], FloatArray],
        run: RunDirectory,
        probe_ids: Sequence[int],
        tolerance: float,
    ) -> None:
        """`save` writes the trainer's weights in Hugging Face layout; `probe(ids, start)` gives the
        trainer's log p(ids[i] | before) for i >= start, nats."""
        self._engine = engine
        self._save = save
        self._probe_trainer = probe
        self._run = run
        self._probe_ids = list(probe_ids)
        self._tolerance = tolerance
        self._published: int | None = None

    async def publish(self, policy_version: int) -> float:
        """Make the trainer's weights `policy_version` of the engine.

        Returns the mean difference on the probe, nats; raises PublicationError above the tolerance.
        """
        folder = self._run.policy(policy_version)
        await asyncio.to_thread(self._save, folder)
        async with within(TIMEOUT_S, f"student.load_policy of version {policy_version}"):
            await self._engine.load_policy(folder, policy_version)
        difference = await self._probe(policy_version)
        if not difference <= self._tolerance:
            raise PublicationError(
                f"the engine does not hold version {policy_version}: on a fixed sequence it is "
                f"{difference:.3g} nats a token away from the trainer (tolerance "
                f"{self._tolerance:g}, engine.probe_tolerance). {self._hint(policy_version)}"
            )
        if self._published is not None and self._published != policy_version:
            async with within(TIMEOUT_S, f"student.unload_policy of {self._published}"):
                await self._engine.unload_policy(self._published)
        self._published = policy_version
        self._run.forget_policies(before=policy_version - 1)
        return difference

    async def _probe(self, policy_version: int) -> float:
        ids = self._probe_ids
        expected = await asyncio.to_thread(self._probe_trainer, ids, 1)
        async with within(TIMEOUT_S, f"student.score of the probe, version {policy_version}"):
            scores = await self._engine.score(ids, start=1, policy_version=policy_version)
        return float(np.abs(scores.logprobs - expected).mean())

    def _hint(self, policy_version: int) -> str:
        if policy_version == 0:
            return "These are the first weights: do engine and trainer load the same model.path?"
        return "Sampling from it would train on the wrong policy"
