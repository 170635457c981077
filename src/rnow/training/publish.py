"""New weights to the engine that samples, and proof that they arrived.

The trainer writes its weights as files, the engine loads those files, and then both are asked for
the log-probabilities of the same ids: of one fixed sequence, which a server reads in one go, and of
what each server samples, alone and eight at once, since decoding has kernels and graphs of its own
that have left adapters out. Sampling from stale or half-loaded weights is otherwise invisible: the
loss stays smooth and learns nothing. Deadlines are the engine's.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rnow.engines.base import Completion, Engine, Sampled, SampleRequest, ScoreRequest
from rnow.engines.vllm.untied import is_tied
from rnow.errors import PublicationError
from rnow.records import FloatArray
from rnow.runs.folder import RunDirectory
from rnow.runtime.kill_points import point
from rnow.runtime.trainer_thread import in_trainer_thread
from rnow.training.agreement import PROBES, Agreement

_NUM_SAMPLES = 8  # at once
_SAMPLED_TOKENS = 32  # by each


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
        agreement: Agreement,
        max_lag: int = 0,
    ) -> None:
        """`save` writes the trainer's weights in Hugging Face layout; `probe(ids, start)` gives the
        trainer's log p(ids[i] | before) for i >= start, nats."""
        self._engine = engine
        self._save = save
        self._probe_trainer = probe
        self._run = run
        self._probe_ids = list(probe_ids)
        self.agreement = agreement
        self._max_lag = max_lag
        self._held: dict[int, dict[str, float]] = {}  # version -> its figures, the newest last

    async def publish(self, policy_version: int) -> dict[str, float]:
        """Make the trainer's weights `policy_version` of the engine, if it has not got it.

        Returns the mean differences on the probes, nats a token; raises PublicationError where one
        is above its limit.
        """
        if policy_version in self._held:
            return self._held[policy_version]
        folder = self._run.policy(policy_version)
        await in_trainer_thread(self._save, folder)
        point("publish/saved")
        await self._engine.load_policy(folder, policy_version)
        point("publish/loaded")
        figures = dict(
            zip(
                PROBES,
                (await self._probe(policy_version), await self._probe_sampling(policy_version)),
                strict=True,
            )
        )
        if policy_version == 0:
            self.agreement.keep_noise(figures)
        self._held[policy_version] = figures
        for version in [one for one in self._held if one < policy_version - self._max_lag]:
            await self._engine.unload_policy(version)
            del self._held[version]
        self._run.forget_policies(before=policy_version - 1)
        return figures

    async def _probe(self, policy_version: int) -> float:
        """Return how far the engine is apart on a fixed sequence."""
        ids = self._probe_ids
        expected = await in_trainer_thread(self._probe_trainer, ids, 1)
        request = ScoreRequest(token_ids=tuple(ids), start=1, policy_version=policy_version)
        answers = await self._engine.probe(request)
        # The furthest of all copies of the weights; NaN if one of them is.
        difference = float(np.max([np.abs(one.logprobs - expected).mean() for one in answers]))
        if not difference <= self.agreement.limit(PROBES[0]):
            folder = self._run.policy(policy_version)
            raise PublicationError(
                f"the engine does not hold version {policy_version}: on a fixed sequence it is "
                f"{difference:.3g} nats a token away from the trainer "
                f"({self.agreement.describe(PROBES[0])}). {_hint(policy_version, folder)}"
            )
        return difference

    async def _probe_sampling(self, policy_version: int) -> float:
        """Return how far what servers sample is apart from what the trainer makes of it."""
        prompt = tuple(self._probe_ids[: (len(self._probe_ids) + 1) // 2])
        requests = [
            SampleRequest(
                token_ids=prompt,
                session=f"probe.{seed}",
                # Together no longer than what is probed: that fits the window.
                max_tokens=max(1, min(_SAMPLED_TOKENS, len(self._probe_ids) - len(prompt))),
                stop_token_ids=(),
                seed=seed,
                policy_version=policy_version,
            )
            for seed in range(_NUM_SAMPLES)
        ]
        copies = await self._engine.probe_sampling(requests)
        differences = await in_trainer_thread(self._differences, copies)
        for copy, (alone, together) in zip(copies, differences, strict=True):
            if not np.max([alone, together]) <= self.agreement.limit(PROBES[1]):
                raise PublicationError(
                    f"{copy.where} does not sample from version {policy_version}: what it says of "
                    f"sampled tokens is {alone:.3g} nats a token away from the trainer where it "
                    f"decodes one sequence, {together:.3g} where {len(copy.together)} at once "
                    f"({self.agreement.describe(PROBES[1])}). What it reads, it reads with the "
                    "right weights. Graphs of decoding have left adapters out in some versions of "
                    "vLLM: try engine.args.enforce-eager=true, or another version"
                )
        return float(np.max(differences))

    def _differences(self, copies: Sequence[Sampled]) -> list[tuple[float, float]]:
        """Return for each copy how far apart it is, alone and together; NaN if a number is."""
        known: dict[bytes, FloatArray] = {}  # replicas mostly sample the same

        def difference(completions: Sequence[Completion]) -> float:
            apart = [np.abs(one.logprobs - self._expected(one, known)) for one in completions]
            return float(np.concatenate(apart).mean()) if apart else 0.0

        return [(difference([copy.alone]), difference(copy.together)) for copy in copies]

    def _expected(self, completion: Completion, known: dict[bytes, FloatArray]) -> FloatArray:
        ids = [*completion.prompt_ids.tolist(), *completion.token_ids.tolist()]
        key = np.array(ids, dtype=np.int64).tobytes()
        if key not in known:
            known[key] = self._probe_trainer(ids, len(completion.prompt_ids))
        return known[key]


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
