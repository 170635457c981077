"""What a trainer remembers of the weights before its last update, and measures with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import load_policy, make_trajectory, qwen3
from safetensors.torch import load_file, save_file

from rnow.config.settings import AlgorithmSettings, TrainerSettings
from rnow.errors import CheckpointError
from rnow.learner.lag import ONE_IN
from rnow.learner.policy import Policy
from rnow.learner.trainer import Trainer
from rnow.records import Batch, FloatArray, RolloutId, ScoredTrajectory

PROMPT = [5, 6, 7]
SAMPLED = [11, 12, 13, 14]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    qwen3().save_pretrained(folder)
    return folder


def load(folder: Path) -> Policy:
    policy = load_policy(folder, qlora_rank=4)
    generator = torch.Generator().manual_seed(7)
    for name, tensor in policy.trainable_state().items():
        if ".lora_B." in name:
            tensor.normal_(0.0, 0.1, generator=generator)
    return policy


def trainer_of(policy: Policy, *, lag: int = 1) -> Trainer:
    return Trainer(
        policy,
        settings=TrainerSettings(num_epochs=1, learning_rate=1e-2, max_policy_lag=lag),
        algorithm=AlgorithmSettings(),
        num_steps=10,
        on_bad_numbers=lambda batch, reason: pytest.fail(reason),
    )


def sampled_logprobs(trainer: Trainer, rollout: int) -> FloatArray:
    ids = [*PROMPT, *SAMPLED[: rollout % 3 + 2]]
    return trainer.probe_logprobs(ids, start=len(PROMPT))


def batch_of(
    trainer: Trainer, *, step: int, version: int, num: int = 3, off_by: float = 0.0
) -> Batch:
    """Trajectories that the trainer's weights of this moment sample as `version`."""
    scored = []
    for rollout in range(num):
        logprobs = sampled_logprobs(trainer, rollout) - off_by
        before = [np.nan] * len(PROMPT)
        trajectory = make_trajectory(
            [*PROMPT, *SAMPLED[: len(logprobs)]],
            [0] * len(PROMPT) + [1] * len(logprobs),
            id=RolloutId(step, 0, rollout),
            sampler_logprobs=[*before, *logprobs],
            policy_version=version,
        )
        teacher = np.array([*before, *(logprobs - 0.7)], dtype=np.float32)
        scored.append(ScoredTrajectory(trajectory=trajectory, teacher_logprobs=teacher))
    return Batch(step=step, scored=tuple(scored))


def kl(differences: FloatArray) -> float:
    return float(np.mean(np.exp(differences.astype(float)) - 1 - differences.astype(float)))


def test_mismatch_is_on_equal_weights_and_staleness_between_the_trainers_own(
    student: Path,
) -> None:
    trainer = trainer_of(load(student))
    first, second = (batch_of(trainer, step=step, version=0, off_by=0.01) for step in (0, 1))
    before = sampled_logprobs(trainer, 0)
    on_policy = trainer.update(first)
    assert "staleness_kl" not in on_policy
    assert on_policy["mismatch_kl"] == pytest.approx(kl(np.full(1, 0.01)), rel=1e-3)
    after = sampled_logprobs(trainer, 0)
    lagging = trainer.update(second)
    # One in 16: of these three the first. By hand: two tokens, the engine 0.01 below the trainer.
    assert ONE_IN == 16
    assert lagging["mismatch_kl"] == pytest.approx(kl(np.full(2, 0.01)), rel=1e-2)
    assert lagging["staleness_kl"] == pytest.approx(kl(after - before), rel=1e-3)
    assert lagging["staleness_kl"] > 100 * lagging["mismatch_kl"]


def test_measuring_the_lag_changes_no_update(student: Path) -> None:
    states = []
    for lag in (0, 1):
        policy = load(student)
        trainer = trainer_of(policy, lag=lag)
        batches = [batch_of(trainer, step=step, version=0) for step in (0, 1)]
        for batch in batches:
            trainer.update(batch)
        states.append({name: one.clone() for name, one in policy.trainable_state().items()})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_swap_gives_the_weights_before_the_last_update_and_back(student: Path) -> None:
    trainer = trainer_of(load(student))
    zeroth = sampled_logprobs(trainer, 1)
    trainer.update(batch_of(trainer, step=0, version=0))
    first = sampled_logprobs(trainer, 1)
    trainer.update(batch_of(trainer, step=1, version=1))
    second = sampled_logprobs(trainer, 1)
    assert len({one.tobytes() for one in (zeroth, first, second)}) == 3
    trainer.swap()
    assert sampled_logprobs(trainer, 1).tobytes() == first.tobytes()
    trainer.swap()
    assert sampled_logprobs(trainer, 1).tobytes() == second.tobytes()


def test_the_former_weights_survive_a_restart_to_the_bit(student: Path, tmp_path: Path) -> None:
    policy = load(student)
    trainer = trainer_of(policy)
    batches = [batch_of(trainer, step=step, version=max(0, step - 1)) for step in range(3)]
    trainer.update(batches[0])
    tensors, scalars = trainer.state()
    save_file(tensors, tmp_path / "optimizer.safetensors")
    save_file(policy.trainable_state(), tmp_path / "weights.safetensors")
    whole = [trainer.update(batch) for batch in batches[1:]]

    resumed = load(student)
    resumed.load_trainable_state(load_file(tmp_path / "weights.safetensors"))
    other = trainer_of(resumed)
    other.load_state(load_file(tmp_path / "optimizer.safetensors"), scalars)
    assert [other.update(batch) for batch in batches[1:]] == whole


def test_a_checkpoint_without_them_is_refused(student: Path) -> None:
    policy = load(student)
    trainer = trainer_of(policy)
    trainer.update(batch_of(trainer, step=0, version=0))
    tensors, scalars = trainer.state()
    kept = {name: one for name, one in tensors.items() if not name.startswith("former/")}
    assert len(tensors) - len(kept) == len(policy.trainable_state())
    with pytest.raises(CheckpointError, match="weights before its last update is of another stud"):
        trainer_of(load(student)).load_state(kept, scalars)


def test_a_skipped_update_leaves_the_same_weights_before_and_after_it(student: Path) -> None:
    policy = load(student)
    reasons: list[str] = []
    trainer = Trainer(
        policy,
        settings=TrainerSettings(num_epochs=1, learning_rate=1e-2, max_policy_lag=1),
        algorithm=AlgorithmSettings(),
        num_steps=10,
        on_bad_numbers=lambda batch, reason: reasons.append(reason),
    )
    trainer.update(batch_of(trainer, step=0, version=0))
    good = batch_of(trainer, step=1, version=0)
    (first, *rest) = good.scored
    teacher = first.teacher_logprobs.copy()
    teacher[len(PROMPT)] = np.finfo(np.float32).max
    bad = ScoredTrajectory(trajectory=first.trajectory, teacher_logprobs=teacher)
    policy.trained_parameters()  # as they are
    now = sampled_logprobs(trainer, 1)
    for parameter in policy.trained_parameters().values():
        parameter.register_hook(lambda gradient: gradient * float("nan"))
    assert trainer.update(Batch(step=1, scored=(bad, *rest)))["trainer/skipped"] == 1.0
    assert len(reasons) == 1
    trainer.swap()
    assert sampled_logprobs(trainer, 1).tobytes() == now.tobytes()
