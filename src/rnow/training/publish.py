"""New weights to the engine that samples, and proof that they arrived.

The trainer writes its weights as files, the engine loads those files, and then both are asked for
the log-probabilities of one fixed sequence. Sampling from stale or half-loaded weights is
otherwise invisible: the loss stays smooth and learns nothing. Deadlines are the engine's.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rnow.engines.base import Engine, ScoreRequest
from rnow.engines.vllm.untied import is_tied
from rnow.errors import PublicationError
from rnow.records import FloatArray
from rnow.runs.folder import RunDirectory
from rnow.runtime.kill_points import point


class Publisher:
    """Publishes one version after another; the engine keeps the newest, and `max_lag` before it."""

    def __init__(
        self,
        engine: Engine,
        *,
        save: Callable[[Path], None],
        probe: Callable[[list[int], int], FloatArray],
        run: RunDirectory,
        probe_ids: Sequence[int],
        tolerance: float,
        max_lag: int = 0,
    ) -> None:
        """`save` writes the trainer's weights in Hugging Face layout; `probe(ids, start)` gives the
        trainer's log p(ids[i] | before) for i >= start, nats."""
        self._engine = engine
        self._save = save
        self._probe_trainer = probe
        self._run = run
        self._probe_ids = list(probe_ids)
        self._tolerance = tolerance
        self._max_lag = max_lag
        self._held: dict[int, float] = {}  # version -> its difference, the newest last

    async def publish(self, policy_version: int) -> float:
        """Make the trainer's weights `policy_version` of the engine, if it has not got it.

        Returns the mean difference on the probe, nats; raises PublicationError above the tolerance.
        """
        if policy_version in self._held:
            return self._held[policy_version]
        folder = self._run.policy(policy_version)
        await asyncio.to_thread(self._save, folder)
        point("publish/saved")
        await self._engine.load_policy(folder, policy_version)
        point("publish/loaded")
        difference = await self._probe(policy_version)
        if not difference <= self._tolerance:
            raise PublicationError(
                f"the engine does not hold version {policy_version}: on a fixed sequence it is "
                f"{difference:.3g} nats a token away from the trainer (tolerance "
                f"{self._tolerance:g}, engine.probe_tolerance). {_hint(policy_version, folder)}"
            )
        self._held[policy_version] = difference
        for version in [one for one in self._held if one < policy_version - self._max_lag]:
            await self._engine.unload_policy(version)
            del self._held[version]
        self._run.forget_policies(before=policy_version - 1)
        return difference

    async def _probe(self, policy_version: int) -> float:
        ids = self._probe_ids
        expected = await asyncio.to_thread(self._probe_trainer, ids, 1)
        request = ScoreRequest(token_ids=tuple(ids), start=1, policy_version=policy_version)
        answers = await self._engine.probe(request)
        # The furthest of all copies of the weights; NaN if one of them is.
        return float(np.max([np.abs(one.logprobs - expected).mean() for one in answers]))


def _hint(policy_version: int, folder: Path) -> str:
    if policy_version == 0:
        return "These are the first weights: do engine and trainer load the same model.path?"
    hint = "Sampling from it would train on the wrong policy"
    if (folder / "config.json").exists() and is_tied(folder):
        hint += (
            ". The model's LM head is its embedding: some builds of vLLM keep the old head when "
            "weights are replaced; leave engine.url out, so that rnow starts a server that does not"
        )
    return hint
