"""`VllmEngine` on a real server and `LocalEngine`, on the same weights; other weights for both.

The server has the clinic's student in untied form, so that whole models can follow
(rnow.engines.vllm.untied).
"""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from vllm_real import copy_model, server_settings

from rnow.engines.base import Completion, SampleRequest, ScoreRequest
from rnow.engines.local.engine import LocalEngine
from rnow.engines.vllm.engine import VllmEngine
from rnow.engines.vllm.server import VllmServer
from rnow.engines.vllm.untied import untied_folder
from rnow.records import BoolArray, FloatArray

TOLERANCE = 1e-4  # nats, float32
MEAN_TOLERANCE = 0.02  # nats, as a mean, bfloat16
VOCABULARY = 780  # ids below are ordinary tokens of the clinic's models


class Pair:
    """The two engines on the same weights, and the server of one."""

    def __init__(self, server: VllmServer, vllm: VllmEngine, local: LocalEngine, model: Path):
        self.server, self.vllm, self.local, self.model = server, vllm, local, model
        self.progress: list[str] = []

    async def load(self, path: Path, version: int) -> None:
        await self.vllm.load_policy(path, version)
        await self.local.load_policy(path, version)

    async def sample(
        self, ids: list[int], *, version: int, temperature: float = 1.0, session: str = "s"
    ) -> Completion:
        completion = await self.vllm.sample(
            SampleRequest(
                token_ids=tuple(ids),
                session=session,
                max_tokens=60,
                stop_token_ids=(),
                seed=11,
                policy_version=version,
                temperature=temperature,
            )
        )
        await self.vllm.release(session)
        return completion

    async def mean_differences(self, version: int) -> tuple[float, float]:
        """Return how far the engines are apart in scoring and in sampling, nats a token.

        On what the model wrote: the log-probability of a token that it finds absurd is a large
        logit, which bfloat16 rounds to 0.06 and more, in either engine.
        """
        scoring, sampling = [], []
        for num in (60, 61, 62, 63):
            ids = make_ids(num)
            completion = await self.sample(ids, version=version)
            both = [*ids, *completion.token_ids.tolist()]
            request = scoring_of(both, start=len(ids), policy_version=version)
            ours = await self.local.score(request)
            theirs = await self.vllm.score(request)
            scoring.append(np.abs(theirs.logprobs - ours.logprobs).mean())
            sampling.append(np.abs(completion.logprobs - ours.logprobs).mean())
        return float(np.mean(scoring)), float(np.mean(sampling))

    async def check_agreement(self, version: int) -> None:
        """Compare scoring, then sampling at three temperatures, on the same ids."""
        for ids in (make_ids(200), make_ids(40)):
            request = scoring_of(ids, start=3, num_top=3, policy_version=version)
            theirs = await self.vllm.score(request)
            ours = await self.local.score(request)
            assert np.abs(theirs.logprobs - ours.logprobs).max() < TOLERANCE
            assert np.abs(theirs.top_logprobs - ours.top_logprobs).max() < TOLERANCE
            differing = theirs.top_ids[:, :2] != ours.top_ids[:, :2]
            assert not (differing & ~may_change_places(ours.top_logprobs)).any()
        for temperature in (1.0, 0.5, 0.0):
            completion = await self.sample(make_ids(40), version=version, temperature=temperature)
            assert completion.prompt_ids.tolist() == make_ids(40)
            assert completion.policy_version == version
            both = [*make_ids(40), *completion.token_ids.tolist()]
            request = scoring_of(both, start=40, policy_version=version)
            ours = await self.local.score(request)
            assert np.abs(completion.logprobs - ours.logprobs).max() < TOLERANCE


def scoring_of(ids: list[int], **asked: Any) -> ScoreRequest:
    return ScoreRequest(token_ids=tuple(ids), **asked)


def make_ids(num: int) -> list[int]:
    numbers = random.Random(num)
    return [numbers.randrange(VOCABULARY) for _ in range(num)]


def may_change_places(top_logprobs: FloatArray) -> BoolArray:
    """Say of the first two of three favourites which of them a neighbour may have overtaken.

    Two that are each off by less than TOLERANCE come in another order only from within twice that.
    """
    near = -np.diff(top_logprobs, axis=1) < 2 * TOLERANCE  # first to second, second to third
    return np.stack([near[:, 0], near.any(axis=1)], axis=1)


def save_adapter(model: Path, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    network = get_peft_model(network, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    for name, weights in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.05)
    network.save_pretrained(folder)
    return folder


def save_model(model: Path, folder: Path, seed: int) -> Path:
    """Save the model with every weight, the tied embedding among them, a little changed."""
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        for weights in network.parameters():
            weights.mul_(1 + 0.1 * torch.randn_like(weights))
    network.save_pretrained(folder)
    return folder


@asynccontextmanager
async def open_pair(
    folder: Path, *, dtype: Literal["float32", "bfloat16"], **fields: Any
) -> AsyncIterator[Pair]:
    """Start a server and load a model in this process; close both at the end.

    `fields`: further settings of the server.
    """
    model = copy_model("student", folder)
    settings = server_settings(
        untied_folder(model, folder / "untied" / "start"),
        folder / "logs" / "student.log",
        max_lora_rank=8,
        dtype=dtype,
        **fields,
    )
    progress: list[str] = []
    server = await VllmServer.start(
        settings, on_progress=lambda waited_s, line: progress.append(line)
    )
    vllm = VllmEngine(
        [server.url],
        untied=folder / "untied",
        request_timeout_s=120,
        why_ended=lambda url: server.why_ended(),
    )
    opened = Pair(server, vllm, LocalEngine(model, dtype=dtype, request_timeout_s=600), model)
    opened.progress = progress
    try:
        yield opened
    finally:
        await opened.local.aclose()
        await vllm.aclose()
        await server.stop()
