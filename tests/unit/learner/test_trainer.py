"""One step: one gradient however a batch is cut, the right direction, nothing on bad numbers."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import load_policy, make_trajectory, model_settings, qwen3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from rnow.config.settings import AlgorithmSettings, TrainerSettings
from rnow.errors import BadNumbersError, CheckpointError, OutOfMemoryError
from rnow.learner.objective import compute_objective
from rnow.learner.packing import pack
from rnow.learner.policy import Policy
from rnow.learner.trainer import (
    OnLogprobs,
    Trainer,
    accumulate_gradients,
    learning_rate_factor,
)
from rnow.records import Batch, FloatArray, RolloutId, ScoredTrajectory, Trajectory

VOCAB = 128


def saved(directory: Path, *, seed: int) -> Path:
    qwen3(seed=seed, vocab_size=VOCAB).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("student"), seed=0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("teacher"), seed=1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bits are compared: keep the order of sums the same whatever machine this runs on."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def load(path: Path, **settings: Any) -> Policy:
    policy = load_policy(path, qlora_rank=4, **settings)
    # A fresh adapter has B = 0, and so no gradient on A.
    generator = torch.Generator().manual_seed(7)
    for name, tensor in policy.trainable_state().items():
        if ".lora_B." in name:
            tensor.normal_(0.0, 0.1, generator=generator)
    return policy


def trainer_of(
    policy: Policy,
    *,
    learning_rate: float = 1e-2,
    on_bad_numbers: Callable[[Batch, str], None] | None = None,
    on_logprobs: OnLogprobs = lambda batch, logprobs: None,
    max_tokens: int = 16384,
    **objective: Any,
) -> Trainer:
    def fail(batch: Batch, reason: str) -> None:
        raise AssertionError(reason)

    return Trainer(
        policy,
        settings=TrainerSettings(
            num_epochs=1, learning_rate=learning_rate, max_tokens_per_micro_batch=max_tokens
        ),
        # Not validated: a reversed sign is what no user may ask for.
        algorithm=AlgorithmSettings().model_copy(update=objective),
        num_steps=10,
        on_bad_numbers=on_bad_numbers or fail,
        on_logprobs=on_logprobs,
    )


# One token list for each turn: what was sampled in it, and what a tool then said.
Turns = Sequence[tuple[Sequence[int], Sequence[int]]]


def trajectory_of(
    rollout: int, prompt: Sequence[int], turns: Turns, *, step: int = 0
) -> Trajectory:
    ids, mask, turn_index = list(prompt), [False] * len(prompt), [-1] * len(prompt)
    for turn, (sampled, tool_text) in enumerate(turns):
        ids += [*sampled, *tool_text]
        mask += [True] * len(sampled) + [False] * len(tool_text)
        turn_index += [turn] * (len(sampled) + len(tool_text))
    return make_trajectory(
        ids, mask, id=RolloutId(step, 0, rollout), turn_index=turn_index, sampler_logprobs=0.0
    )


def logprobs_under(policy: Policy, trajectory: Trajectory) -> FloatArray:
    """Return the log-probability of each action token by way of all logits, NaN elsewhere."""
    ids = torch.from_numpy(trajectory.token_ids).long()[None]
    with torch.no_grad():
        logits = policy._causal_lm(input_ids=ids).logits.log_softmax(-1)
    found = logits[0, :-1].gather(1, ids[0, 1:, None])[:, 0].float().numpy()
    return np.where(trajectory.action_mask, np.concatenate([[0], found]), np.nan).astype(np.float32)


def scored(trajectory: Trajectory, *, student: Policy, teacher: Policy) -> ScoredTrajectory:
    return ScoredTrajectory(
        trajectory=replace(trajectory, sampler_logprobs=logprobs_under(student, trajectory)),
        teacher_logprobs=logprobs_under(teacher, trajectory),
    )


def random_trajectories(*, step: int = 0, count: int = 7) -> list[Trajectory]:
    """Trajectories of very different lengths, of one to three turns with tool text between them."""
    rng = np.random.default_rng(5 + step)

    def ids(low: int, high: int) -> list[int]:
        return rng.integers(0, VOCAB, rng.integers(low, high)).tolist()

    return [
        trajectory_of(
            rollout,
            ids(1, 12),
            [(ids(1, 7), ids(0, 9)) for _ in range(1 + rollout % 3)],
            step=step,
        )
        for rollout in range(count)
    ]


def batch_for(student: Policy, teacher: Policy, *, step: int = 0) -> Batch:
    return Batch(
        step=step,
        scored=tuple(
            scored(trajectory, student=student, teacher=teacher)
            for trajectory in random_trajectories(step=step)
        ),
    )


def numbered(items: Iterable[ScoredTrajectory]) -> Batch:
    """A batch of these in their order, which is that of ids."""
    scored = [
        replace(item, trajectory=replace(item.trajectory, id=RolloutId(0, 0, rollout)))
        for rollout, item in enumerate(items)
    ]
    return Batch(step=0, scored=tuple(scored))


def gradient_of(policy: Policy, batch: Batch, *, max_tokens: int, pads: bool = False) -> Tensor:
    for parameter in policy.trained_parameters().values():
        parameter.grad = None
    accumulate_gradients(
        policy,
        pack(batch, max_tokens=max_tokens, pads=pads),
        algorithm=AlgorithmSettings(kl_discount=0.7),
        num_actions=batch.num_actions,
    )
    grads = [parameter.grad for parameter in policy.trained_parameters().values()]
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


def weights_of(policy: Policy) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in policy.trainable_state().items()}


def same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


# The gradient


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-12)])
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(
    student: Path, teacher: Path, tuning: str, dtype: str, bound: float
) -> None:
    policy = load(student, tuning=tuning, dtype=dtype)
    batch = batch_for(policy, load(teacher))
    assert [len(pack(batch, max_tokens=size, pads=False)) for size in (1, 60)] == [7, 2]
    reference = gradient_of(policy, batch, max_tokens=100_000)
    assert reference.norm() > 0.01
    for cut, max_tokens in ((batch, 1), (batch, 60), (numbered(reversed(batch.scored)), 60)):
        for pads in (False, True):
            gradient = gradient_of(policy, cut, max_tokens=max_tokens, pads=pads)
            assert (gradient - reference).norm() <= bound * reference.norm()
    for chunk_tokens in (1, 5):
        chunked = load(student, tuning=tuning, dtype=dtype, chunk_tokens=chunk_tokens)
        gradient = gradient_of(chunked, batch, max_tokens=60)
        assert (gradient - reference).norm() <= bound * reference.norm()


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_cut_order_chunk_or_checkpoint_changes_the_gradient(
    student: Path, teacher: Path, data: st.DataObject
) -> None:
    """Any part of a batch in any order, against each trajectory alone without any of these."""
    plain = load(student, tuning="full", dtype="float64", activation_checkpointing=False)
    whole = batch_for(plain, load(teacher))
    chosen = data.draw(st.lists(st.sampled_from(whole.scored), min_size=1, max_size=12))
    reference = gradient_of(plain, numbered(chosen), max_tokens=1)
    policy = load(
        student,
        tuning="full",
        dtype="float64",
        activation_checkpointing=data.draw(st.booleans()),
        chunk_tokens=data.draw(st.integers(1, 50)),
    )
    gradient = gradient_of(
        policy,
        numbered(data.draw(st.permutations(chosen))),
        max_tokens=data.draw(st.integers(1, 300)),
        pads=data.draw(st.booleans()),
    )
    assert (gradient - reference).norm() <= 1e-12 * reference.norm()


def test_the_gradient_is_that_of_every_trajectory_run_alone_through_a_plain_model(
    student: Path, teacher: Path
) -> None:
    # No packing, no chunks, no doubling: logits of all tokens, a loop from the right, one graph.
    policy = load(student, tuning="full", dtype="float64")
    batch = batch_for(policy, load(teacher))
    actual = gradient_of(policy, batch, max_tokens=60)
    for parameter in policy.trained_parameters().values():
        parameter.grad = None
    loss = torch.zeros((), dtype=torch.float64)
    for item in batch.scored:
        ids = torch.from_numpy(item.trajectory.token_ids).long()
        logprobs = policy._causal_lm(input_ids=ids[None]).logits[0].log_softmax(-1)
        gap = 0.0
        for index in reversed(np.flatnonzero(item.trajectory.action_mask)):
            logprob = logprobs[index - 1, ids[index]]
            reverse_kl = logprob.item() - float(item.teacher_logprobs[index])
            gap = max(-10.0, min(10.0, reverse_kl)) + 0.7 * gap
            ratio = (logprob - float(item.trajectory.sampler_logprobs[index])).exp()
            loss = loss + ratio * gap / batch.num_actions
    loss.backward()
    grads = [parameter.grad for parameter in policy.trained_parameters().values()]
    expected = torch.cat([grad.flatten() for grad in grads if grad is not None])
    assert (actual - expected).norm() <= 1e-12 * expected.norm()


def test_a_penalty_of_zero_leaves_every_bit_of_the_weights(student: Path, teacher: Path) -> None:
    for tuning in ("lora", "full"):
        policy = load(student, tuning=tuning)
        before = weights_of(policy)
        trainer = trainer_of(policy, kl_penalty_coef=0.0)
        for step in range(3):
            result = trainer.update(batch_for(policy, load(teacher), step=step))
            assert result["trainer/grad_norm"] == 0.0
            assert result["trainer/skipped"] == 0.0
        assert same_bits(weights_of(policy), before)


@pytest.mark.parametrize("max_tokens", [1, 100_000])
def test_log_probabilities_before_an_update_are_told_however_the_batch_is_cut(
    student: Path, teacher: Path, max_tokens: int
) -> None:
    policy, told = load(student), []
    trainer = trainer_of(policy, max_tokens=max_tokens, on_logprobs=lambda *each: told.append(each))
    batch = batch_for(policy, load(teacher))
    expected = [logprobs_under(policy, item.trajectory) for item in batch.scored]
    trainer.update(batch)
    ((same, logprobs),) = told
    assert same is batch
    assert sorted(logprobs) == [*range(len(batch.scored))]
    for index, values in logprobs.items():
        mask = batch.scored[index].trajectory.action_mask
        np.testing.assert_allclose(values, expected[index][mask], atol=1e-5)


def test_a_teacher_that_is_the_student_gives_no_advantage(student: Path) -> None:
    policy = load(student)
    (micro_batch,) = pack(batch_for(policy, policy), max_tokens=100_000, pads=False)
    objective = compute_objective(
        policy.action_logprobs(
            micro_batch.token_ids,
            position_ids=micro_batch.position_ids,
            action_index=micro_batch.action_index,
        ),
        micro_batch.actions,
        settings=AlgorithmSettings(),
        num_actions=len(micro_batch.action_index),
        num_turns=3,
    )
    assert objective.totals.max_advantage <= 1e-4
    assert objective.totals.mismatch_kl / len(micro_batch.action_index) <= 1e-8


# The direction


def test_an_update_lowers_what_the_student_likes_more_and_raises_what_it_likes_less(
    student: Path,
) -> None:
    for gap, sign in ((2.0, -1), (-2.0, 1)):
        policy = load(student)
        own = trajectory_of(0, [1, 2, 3], [([4], [])])
        before = logprobs_under(policy, own)
        item = ScoredTrajectory(
            trajectory=replace(own, sampler_logprobs=before), teacher_logprobs=before - gap
        )
        trainer_of(policy, learning_rate=1e-3).update(Batch(step=0, scored=(item,)))
        assert np.sign(logprobs_under(policy, own)[3] - before[3]) == sign


def sample(policy: Policy, *, step: int, count: int, num_tokens: int) -> list[Trajectory]:
    """Sample on the policy: one prompt of three tokens, `count` rollouts."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.tensor([[1, 2, 3]]).repeat(count, 1)
    with torch.no_grad():
        for _ in range(num_tokens):
            probabilities = policy._causal_lm(input_ids=ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    return [
        trajectory_of(rollout, [1, 2, 3], [(row[3:], [])], step=step)
        for rollout, row in enumerate(ids.tolist())
    ]


@pytest.mark.parametrize(("kl_penalty_coef", "falls"), [(1.0, True), (-1.0, False)])
def test_reverse_kl_falls_in_five_steps_and_rises_with_the_sign_reversed(
    student: Path, teacher: Path, kl_penalty_coef: float, falls: bool
) -> None:
    policy, teacher_policy = load(student, tuning="full"), load(teacher)
    trainer = trainer_of(policy, kl_penalty_coef=kl_penalty_coef)
    reverse_kl = []
    for step in range(6):
        trajectories = sample(policy, step=step, count=48, num_tokens=8)
        items = (scored(each, student=policy, teacher=teacher_policy) for each in trajectories)
        result = trainer.update(Batch(step=step, scored=tuple(items)))
        reverse_kl.append(result["reverse_kl"])
    assert (reverse_kl[5] < 0.8 * reverse_kl[0]) == falls
    assert (reverse_kl[5] > 1.2 * reverse_kl[0]) == (not falls)


# What is reported


def test_metrics_of_a_step_are_those_worked_out_by_hand(student: Path) -> None:
    policy = load(student)
    own = trajectory_of(0, [1, 2], [([3, 4], [9, 9]), ([5], [])])
    logprobs = logprobs_under(policy, own)
    #   reverse_kl   0.5   −0.1 | 20        log ratio   ln 2    0 | 0
    item = ScoredTrajectory(
        trajectory=replace(
            own,
            sampler_logprobs=logprobs - np.array([0, 0, np.log(2), 0, 0, 0, 0], dtype=np.float32),
        ),
        teacher_logprobs=logprobs - np.array([0, 0, 0.5, -0.1, 0, 0, 20], dtype=np.float32),
    )
    metrics = trainer_of(policy).update(Batch(step=0, scored=(item,)))
    assert metrics.pop("trainer/grad_norm") > 0
    expected = {
        "reverse_kl": 20.4 / 3,
        "reverse_kl/turn_0": 0.2,
        "reverse_kl/turn_1": 20.0,
        "teacher_kl": 20.4 / 3,
        "mismatch_kl": (1 - np.log(2)) / 3,
        "mean_ratio": 4 / 3,
        "trainer/loss": (2 * 0.5 - 0.1 + 10) / 3,
        "trainer/clip_share": 0.0,
        "trainer/kl_clip_share": 1 / 3,
        "trainer/ratio_cap_share": 0.0,
        "trainer/max_advantage": 10.0,
        "trainer/learning_rate": 0.01,
        "trainer/num_micro_batches": 1.0,
        "trainer/skipped": 0.0,
        "tokens/action": 3.0,
        "tokens/total": 7.0,
    }
    assert metrics == {name: pytest.approx(value, abs=1e-5) for name, value in expected.items()}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_the_learning_rate_climbs_and_then_follows_its_schedule(
    schedule: Any, expected: list[float]
) -> None:
    settings = TrainerSettings(num_epochs=1, warmup_steps=2, schedule=schedule)
    factors = [learning_rate_factor(step, settings=settings, num_steps=6) for step in range(6)]
    assert factors == pytest.approx(expected)
    last = learning_rate_factor(100, settings=settings, num_steps=6)
    assert last == (1.0 if schedule == "constant" else 0.0)


def test_a_probe_gives_log_probabilities_from_start_on(student: Path) -> None:
    policy = load(student)
    probed = trainer_of(policy).probe_logprobs([5, 6, 7, 8, 9], start=2)
    expected = logprobs_under(policy, trajectory_of(0, [5, 6], [([7, 8, 9], [])]))
    assert probed.dtype == np.float32
    np.testing.assert_allclose(probed, expected[2:], atol=1e-5)


# Bad numbers


def test_bad_numbers_move_nothing_and_the_third_time_in_a_row_end_the_run(
    student: Path, teacher: Path
) -> None:
    policy = load(student, tuning="full")
    batch = batch_for(policy, load(teacher))
    kept: list[tuple[Batch, str]] = []
    trainer = trainer_of(policy, on_bad_numbers=lambda batch, reason: kept.append((batch, reason)))
    trainer.update(batch)
    norm = policy.trained_parameters()["model.norm.weight"]
    good = norm.detach().clone()

    def update(value: float) -> dict[str, float]:
        with torch.no_grad():
            norm.copy_(good)
            norm[0] = value
        before, state = weights_of(policy), trainer.state()[0]
        moments = {name: tensor.clone() for name, tensor in state.items()}
        try:
            return trainer.update(batch)
        finally:
            if not np.isfinite(value):
                after = weights_of(policy)
                after["model.norm.weight"][0] = before["model.norm.weight"][0] = 0.0  # nan != nan
                assert same_bits(after, before)
                assert same_bits(trainer.state()[0], moments)

    for _ in range(2):
        result = update(float("nan"))
        assert result["trainer/skipped"] == 1.0
        assert "reverse_kl" not in result
        assert all(np.isfinite(value) for value in result.values())
    assert update(1.0)["trainer/skipped"] == 0.0
    good = norm.detach().clone()
    for _ in range(2):
        update(float("inf"))
    with pytest.raises(BadNumbersError) as caught:
        update(float("inf"))
    assert caught.value.exit_code == 4
    assert len(kept) == 5
    assert all(each is batch for each, _ in kept)
    reason = kept[-1][1]
    assert reason.startswith("step 0: mean_ratio is nan, mismatch_kl is nan, reverse_kl is nan, ")
    assert str(caught.value) == (
        f"{reason}; that is 3 updates in a row that could not be made. Their batches are kept. "
        "Lower trainer.learning_rate or set model.dtype: float32"
    )


def test_an_update_without_memory_says_what_to_lower(student: Path, teacher: Path) -> None:
    class Hungry(Policy):
        def action_logprobs(self, *_: object, **__: object) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    hungry = Hungry.load(
        student, model_settings(qlora_rank=4), seed=0, activation_checkpointing=False
    )
    trainer = trainer_of(hungry)
    with pytest.raises(OutOfMemoryError) as caught:
        trainer.update(batch_for(load(student), load(teacher)))
    assert str(caught.value) == (
        "the update of step 0 ran out of memory: CUDA out of memory. Tried to allocate 2.00 GiB. "
        "Lower trainer.max_tokens_per_micro_batch (16384) or set "
        "trainer.activation_checkpointing: true; the run goes on at this step, its rollouts are "
        "kept"
    )


def test_a_batch_without_an_action_token_is_refused(student: Path) -> None:
    policy = load(student)
    item = scored(trajectory_of(0, [1, 2], []), student=policy, teacher=policy)
    with pytest.raises(ValueError, match="a batch without an action token cannot be trained on"):
        trainer_of(policy).update(Batch(step=0, scored=(item,)))


# Its state


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_one_step_and_two_after_a_restart_are_three_steps_to_the_bit(
    student: Path, teacher: Path, tmp_path: Path, tuning: str
) -> None:
    policy = load(student, tuning=tuning)
    teacher_policy = load(teacher)
    batches = [batch_for(policy, teacher_policy, step=step) for step in range(3)]
    trainer = trainer_of(policy)
    trainer.update(batches[0])
    tensors, scalars = trainer.state()
    save_file(tensors, tmp_path / "optimizer.safetensors")
    save_file(policy.trainable_state(), tmp_path / "weights.safetensors")
    for batch in batches[1:]:
        trainer.update(batch)

    resumed = load(student, tuning=tuning)
    resumed.load_trainable_state(load_file(tmp_path / "weights.safetensors"))
    resumed_trainer = trainer_of(resumed)
    resumed_trainer.load_state(load_file(tmp_path / "optimizer.safetensors"), scalars)
    for batch in batches[1:]:
        resumed_trainer.update(batch)
    assert same_bits(weights_of(resumed), weights_of(policy))
    assert same_bits(resumed_trainer.state()[0], trainer.state()[0])


def test_the_count_of_bad_updates_survives_a_restart(student: Path, teacher: Path) -> None:
    policy = load(student, tuning="full")
    batch = batch_for(policy, load(teacher))
    policy.trained_parameters()["model.norm.weight"].data[0] = float("nan")
    first = trainer_of(policy, on_bad_numbers=lambda batch, reason: None)
    first.update(batch)
    first.update(batch)
    second = trainer_of(policy, on_bad_numbers=lambda batch, reason: None)
    tensors, scalars = first.state()
    assert (tensors, scalars) == ({}, {"num_bad_updates": 2})
    second.load_state(tensors, scalars)
    with pytest.raises(BadNumbersError):
        second.update(batch)


def test_a_state_from_before_the_first_update_takes_all_moments_away(
    student: Path, teacher: Path
) -> None:
    trainer = trainer_of(load(student))
    before = trainer.state()
    trainer.update(batch_for(load(student), load(teacher)))
    assert trainer.state() != before
    trainer.load_state(*before)
    assert trainer.state() == before == ({}, {"num_bad_updates": 0})


def test_optimizer_state_that_lacks_a_weight_is_refused(student: Path, teacher: Path) -> None:
    policy = load(student)
    trainer = trainer_of(policy)
    trainer.update(batch_for(policy, load(teacher)))
    tensors, scalars = trainer.state()
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.default.weight"
    del tensors[f"exp_avg/{name}"]
    with pytest.raises(CheckpointError) as caught:
        trainer_of(policy).load_state(tensors, scalars)
    assert str(caught.value) == (
        f"the checkpoint's optimizer state is of another student: its exp_avg/{name} is missing, "
        "this run's is (16, 4); start anew with --fresh"
    )
