"""Every family that people train, through the real loop's parts: sample, score, update, publish."""

from pathlib import Path

import numpy as np
import pytest
from builders import load_policy, make_trajectory
from families import FAMILIES, tiny_model

from rnow.config.settings import AlgorithmSettings, TrainerSettings
from rnow.engines.base import SampleRequest, ScoreRequest
from rnow.engines.local.engine import LocalEngine
from rnow.learner.trainer import Trainer
from rnow.records import Batch, RolloutId, ScoredTrajectory

NUM_SAMPLED = 12  # a turn


async def roll_out(
    student: LocalEngine, teacher: LocalEngine, *, id: RolloutId, version: int
) -> ScoredTrajectory:
    """Two turns with text of a tool between them, longer than a sliding window."""
    rng = np.random.default_rng([id.step, id.rollout])
    ids = rng.integers(3, 128, 15 + 4 * id.rollout).tolist()
    mask, logprobs = [False] * len(ids), [0.0] * len(ids)
    for turn in range(2):
        completion = await student.sample(
            SampleRequest(
                token_ids=tuple(ids),
                session=str(id),
                max_tokens=NUM_SAMPLED,
                stop_token_ids=(),
                seed=turn,
                policy_version=version,
            )
        )
        told = rng.integers(3, 128, 9 * (1 - turn)).tolist()
        ids += [*completion.token_ids.tolist(), *told]
        mask += [True] * NUM_SAMPLED + [False] * len(told)
        logprobs += [*completion.logprobs.tolist(), *([0.0] * len(told))]
    await student.release(str(id))
    scores = await teacher.score(ScoreRequest(token_ids=tuple(ids), start=1))
    trajectory = make_trajectory(
        ids, mask, id=id, sampler_logprobs=logprobs, policy_version=version
    )
    teacher_logprobs = np.where(mask, [0.0, *scores.logprobs], np.nan).astype(np.float32)
    return ScoredTrajectory(trajectory=trajectory, teacher_logprobs=teacher_logprobs)


@pytest.mark.parametrize("family", FAMILIES)
async def test_two_steps_of_training_have_the_trainers_numbers_in_the_engine(
    family: str, tmp_path: Path
) -> None:
    for name, seed in (("student", 0), ("teacher", 1)):
        tiny_model(family, seed=seed).save_pretrained(tmp_path / name)
    student = LocalEngine(tmp_path / "student", request_timeout_s=600)
    teacher = LocalEngine(tmp_path / "teacher", request_timeout_s=600)
    policy = load_policy(tmp_path / "student", qlora_rank=4, dtype="float32")
    trainer = Trainer(
        policy,
        settings=TrainerSettings(num_epochs=1, learning_rate=1e-2),
        algorithm=AlgorithmSettings(),
        num_steps=2,
        on_bad_numbers=lambda batch, reason: pytest.fail(reason),
    )
    reverse_kl = []
    for step in range(2):
        policy.save(tmp_path / f"policy-{step}")
        await student.load_policy(tmp_path / f"policy-{step}", step + 1)
        scored = [
            await roll_out(student, teacher, id=RolloutId(step, 0, index), version=step + 1)
            for index in range(4)
        ]
        metrics = trainer.update(Batch(step=step, scored=tuple(scored)))
        assert metrics["mismatch_kl"] < 1e-9
        reverse_kl.append(metrics["reverse_kl"])
    assert reverse_kl[0] > 0.1  # two models, not one
    await student.aclose()
    await teacher.aclose()
