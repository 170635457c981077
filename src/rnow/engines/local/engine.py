"""`LocalEngine`: a transformers model in this process, on CPU (or a GPU if there is one).

    engine.py     the Engine: checks what is asked, waits for it with a deadline
    reply.py      event loop ↔ forward thread
    worker.py     what runs next: sessions, rows, versions
    policy.py     one version's weights, and what belongs to them
    batch.py      forwards: read, decode
    scoring.py    texts that wait for the LM head
    head.py       log-probabilities and favourites from hidden states
    attention.py  attention whose bits do not depend on neighbours
    cache.py      keys and values
    sampling.py   a token from logits
    weights.py    model folders, adapters

The hard promise is batch invariance: which ids a sequence samples, and their log-probabilities,
have the same bits whatever runs beside it and in whatever order it came, for one machine, torch
version and number of threads. "Resumed equals uninterrupted" stands on it. It holds for a
trajectory rolled out in the same turns; an engine that reads at once what another read in turns
agrees to rounding only.

Left out: anything for large models or many sequences at speed. That is the served engine's work.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import torch
from transformers import PreTrainedModel

from rnow.engines.base import Completion, Sampled, SampleRequest, ScoreRequest, Scores
from rnow.engines.local.batch import MIN_ROWS, DecodingBatch, invariant_sizes
from rnow.engines.local.head import Head
from rnow.engines.local.policy import LoadedPolicy
from rnow.engines.local.reply import FORWARD_THREAD, Reply
from rnow.engines.local.weights import load_model, load_policy_model
from rnow.engines.local.worker import Generation, Worker
from rnow.errors import DeadlineError, EngineError, ModelError

_CLOSE_TIMEOUT_S = 60.0
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


class LocalEngine:
    """An `Engine` in this process.

    engine = LocalEngine(Path("models/student"), request_timeout_s=600.0)
    completion = await engine.sample(SampleRequest(token_ids=ids, …))
    await engine.aclose()
    """

    def __init__(
        self,
        model_path: Path,
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str = "cpu",
        request_timeout_s: float,
        rows: int = 32,
        window: int | None = None,
    ) -> None:
        """Load a model folder; its weights are samplable as policy version 0.

        `rows`: how many sequences decode at once at most; others wait.
        `window`: tokens of the longest text, by which some models choose their positions. Blocks;
        the number of threads is the caller's at this moment.
        """
        if rows < MIN_ROWS:
            raise EngineError(f"rows is {rows}: batch invariance needs at least {MIN_ROWS}")
        model = load_model(model_path, dtype=_DTYPES[dtype], device=device, window=window)
        self.model = model
        self._request_timeout_s = request_timeout_s
        num_threads = torch.get_num_threads()
        sizes, head = FORWARD_THREAD.submit(_settle_thread, model, rows, num_threads).result()
        self._sizes = sizes or (rows,)
        self._worker = Worker(LoadedPolicy(0, model, DecodingBatch(model, self._sizes), head))
        if not sizes:
            logger.warning(
                "%s: with %d threads the bits of a sequence change with its neighbours, so a "
                "resumed run may differ from an uninterrupted one. OMP_NUM_THREADS=1 helps, "
                "unless the model is a mixture of experts",
                model_path,
                num_threads,
            )

    async def sample(self, request: SampleRequest) -> Completion:
        """Continue `token_ids`; of ids that extend the session's former ones the rest is read.

        At the deadline the generation is cut and what there is returned, as LENGTH.
        """
        self._check(request.token_ids, num_more=request.max_tokens)
        generation = Generation(Reply(), request)
        self._worker.generate(generation)
        try:
            return await generation.reply.wait(
                f"engine.sample of session {request.session}",
                timeout_s=self._request_timeout_s,
                describe=self.describe,
                cut=lambda: self._worker.cut(generation),
            )
        except (asyncio.CancelledError, DeadlineError):
            self._worker.cancel(generation)
            raise

    async def score(self, request: ScoreRequest) -> Scores:
        self._check(request.token_ids, num_more=0)
        vocab_size = self.model.config.get_text_config().vocab_size
        if request.num_top > vocab_size:
            raise EngineError(f"{request.num_top} favourites are asked of {vocab_size} words")
        reply = self._worker.score(request)
        return await self._wait(reply, f"engine.score of {len(request.token_ids)} tokens")

    async def probe(self, request: ScoreRequest) -> tuple[Scores, ...]:
        return (await self.score(request),)

    async def probe_sampling(self, requests: Sequence[SampleRequest]) -> tuple[Sampled, ...]:
        """Sample the first request: here no sequence depends on others beside it."""
        alone = await self.sample(requests[0])
        await self.release(requests[0].session)
        return (Sampled(where="the embedded engine", alone=alone, together=()),)

    async def load_policy(self, path: Path, policy_version: int) -> None:
        """Load an adapter on the start weights, or a whole model; sessions keep their weights."""

        def work() -> None:
            try:
                model = load_policy_model(path, self.model)
            except ModelError as error:
                raise EngineError(str(error)) from error
            batch = DecodingBatch(model, self._sizes)
            head = self._worker.start.head.with_weights_of(model)
            policy = LoadedPolicy(policy_version, model, batch, head)
            self._worker.policies[policy_version] = policy

        await self._call(work, f"engine.load_policy of version {policy_version}")

    async def unload_policy(self, policy_version: int) -> None:
        """Take no new session on this version; those that began on it end on it."""

        def work() -> None:
            self._worker.policy(policy_version)
            del self._worker.policies[policy_version]

        await self._call(work, f"engine.unload_policy of version {policy_version}")

    async def release(self, session: str) -> None:
        await self._call(lambda: self._worker.release(session), f"engine.release of {session}")

    def describe(self) -> str:
        """Say what the engine is busy with."""
        return self._worker.describe()

    async def aclose(self) -> None:
        """Fail what is under way and drop what is kept; closing twice is fine."""
        await self._worker.close().wait(
            "engine.aclose", timeout_s=_CLOSE_TIMEOUT_S, describe=self.describe
        )

    async def _call(self, work: Callable[[], None], what: str) -> None:
        await self._wait(self._worker.call(work), what)

    async def _wait(self, reply: Reply[Value], what: str) -> Value:
        return await reply.wait(what, timeout_s=self._request_timeout_s, describe=self.describe)

    def _check(self, ids: tuple[int, ...], *, num_more: int) -> None:
        """Refuse what the model cannot read."""
        config = self.model.config.get_text_config()
        vocab_size = config.vocab_size
        max_positions = getattr(config, "max_position_embeddings", None) or math.inf
        if not ids or min(ids) < 0 or max(ids) >= vocab_size:
            raise EngineError(
                f"{len(ids)} token ids from {min(ids, default=None)} to {max(ids, default=None)}; "
                f"the model reads at least one, each from 0 to {vocab_size - 1}"
            )
        if len(ids) + num_more > max_positions:
            raise EngineError(
                f"{len(ids)} tokens and {num_more} to sample exceed the model's {max_positions} "
                "positions; lower rollout.max_context_window"
            )


@torch.inference_mode()
def _settle_thread(
    model: PreTrainedModel, rows: int, num_threads: int
) -> tuple[tuple[int, ...], Head]:
    """Give the forward thread the caller's number of threads; try there what holds with it: with
    how many rows bits do, and how the head may be read."""
    torch.set_num_threads(num_threads)
    return invariant_sizes(model, rows), Head(model)
