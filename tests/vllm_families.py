"""A tiny network of a family on a real vLLM server, beside the trainer that holds the same weights.

Sizes that vLLM's kernels take: heads and experts of 32 and more, and in Qwen2 heads that divide the
width. The words are the clinic's.
"""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import load_policy
from families import tiny_model
from vllm_pair import make_ids, scoring_of
from vllm_real import server_settings

from rnow.engines.base import Engine, SampleRequest
from rnow.engines.opening import open_engine
from rnow.engines.spec import EngineSpec
from rnow.engines.vllm.deaths import Deaths
from rnow.engines.vllm.untied import needs_untying
from rnow.learner.policy import Policy
from rnow.plan.engine_specs import adapted_layers
from rnow.records import FloatArray

SIZES = {
    "vocab_size": 797,  # the clinic's
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_OWN = {"qwen2": {"hidden_size": 128}, "qwen3-moe": {"moe_intermediate_size": 64}}
NUM_SAMPLED = 24
WINDOW = 512  # tokens
_WORDS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far a server and the trainer are apart on the same tokens: nats a token."""

    mismatch_kl: float  # of what the server sampled
    sampling: float  # the largest difference there
    scoring: float  # the largest difference over prompt and completion
    effect: float  # the largest change that the loaded weights made to what the trainer computes

    @property
    def worst(self) -> float:
        return max(self.sampling, self.scoring)


def save_family(family: str, folder: Path, *, seed: int = 0, **sizes: Any) -> Path:
    """Save a network of `family` with the clinic's tokenizer."""
    chosen = {**SIZES, **_OWN.get(family, {}), **sizes}
    tiny_model(family, seed=seed, **chosen).save_pretrained(folder)
    source = resources.files("rnow") / "templates" / "clinic" / "models" / "student"
    with resources.as_file(source) as clinic:
        for name in _WORDS:
            shutil.copy(clinic / name, folder / name)
    return folder


def load_student(model: Path, *, tuning: str) -> Policy:
    return load_policy(model, tuning=tuning, qlora_rank=8, dtype="float32", window=WINDOW)


def changed_policy(model: Path, *, tuning: str) -> Policy:
    """Load a student as the trainer does and move everything that it trains."""
    policy = load_student(model, tuning=tuning)
    generator = torch.Generator().manual_seed(5)
    policy.load_trainable_state(
        {
            name: weights + 0.05 * torch.randn(weights.shape, generator=generator)
            for name, weights in policy.trainable_state().items()
        }
    )
    return policy


def trainer_logprobs(policy: Policy, ids: list[int]) -> FloatArray:
    """Return the trainer's log-probabilities of all tokens but the first."""
    with torch.no_grad():
        logprobs = policy.action_logprobs(
            torch.tensor([ids]),
            position_ids=torch.arange(len(ids))[None],
            action_index=torch.arange(1, len(ids)),
        )
    return logprobs.numpy()


@asynccontextmanager
async def serve(
    model: Path, folder: Path, *, tuning: str, say: Callable[[str], None] = print
) -> AsyncIterator[Engine]:
    """Open an engine on a server that is started as for a student with this tuning."""
    untied = folder / "untied" if tuning == "full" and needs_untying(model) else None
    settings = server_settings(
        model if untied is None else untied / "start",
        folder / f"{tuning}.log",
        max_lora_rank=8 if tuning == "lora" else None,
        lora_targets=adapted_layers(model) if tuning == "lora" else (),
        max_model_len=WINDOW,
    )
    spec = EngineSpec(
        role="student",
        model=model,
        dtype="float32",
        device="cpu",
        request_timeout_s=120,
        tolerance=0.001,
        servers=(settings,),
        untied=untied,
    )
    engine = await open_engine(spec, deaths=Deaths(), say=say)
    try:
        yield engine
    finally:
        await engine.aclose()


async def compare(engine: Engine, policy: Policy, start: Policy, *, version: int) -> Agreement:
    """Sample and score by `engine`; `policy` has the weights of `version`, `start` the first."""
    differences, scoring, effects = [], [], []
    for num in (5, 20, 45):  # inside a sliding window, and behind it
        ids = make_ids(num)
        completion = await engine.sample(
            SampleRequest(
                token_ids=tuple(ids),
                session=str(num),
                max_tokens=NUM_SAMPLED,
                stop_token_ids=(),
                seed=num,
                policy_version=version,
            )
        )
        await engine.release(str(num))
        ids += completion.token_ids.tolist()
        ours = trainer_logprobs(policy, ids)
        scores = await engine.score(scoring_of(ids, start=1, policy_version=version))
        differences.append(ours[num - 1 :] - completion.logprobs)
        scoring.append(np.abs(scores.logprobs - ours).max())
        effects.append(np.abs(trainer_logprobs(start, ids) - ours).max())
    ratio = np.concatenate(differences).astype(np.float64)
    return Agreement(
        mismatch_kl=float((np.expm1(ratio) - ratio).mean()),
        sampling=float(np.abs(ratio).max()),
        scoring=float(max(scoring)),
        effect=float(max(effects)),
    )


async def train_and_serve(
    family: str, folder: Path, *, tuning: str, say: Callable[[str], None] = print, **sizes: Any
) -> tuple[Agreement, Agreement]:
    """Serve a student, before its first publication and after one: a teacher is the former."""
    model = save_family(family, folder / "model", **sizes)
    start = load_student(model, tuning=tuning)
    policy = changed_policy(model, tuning=tuning)
    policy.save(folder / tuning)
    async with serve(model, folder, tuning=tuning, say=say) as engine:
        first = await compare(engine, start, start, version=0)
        await engine.load_policy(folder / tuning, 1)
        return first, await compare(engine, policy, start, version=1)
