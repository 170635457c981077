"""The student network: what is trained, what is scored, what it costs, what is saved."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import load_policy, qwen3, qwen3_config
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rnow.errors import CheckpointError, ModelError
from rnow.learner.lm_head import LogitMap, default_chunk_tokens, token_logprobs
from rnow.learner.policy import Policy
from rnow.learner.weights import export_merged

VOCAB = 128
LINEAR_LAYERS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def write_model(directory: Path, *, tied: bool, dtype: torch.dtype = torch.float32) -> Path:
    # A dropout that must never be seen.
    network = qwen3(vocab_size=VOCAB, tie_word_embeddings=tied, attention_dropout=0.5)
    network.to(dtype).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tied", tied=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "untied", tied=False)


def some_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def positions(token_ids: Tensor) -> Tensor:
    return torch.arange(token_ids.shape[1]).expand_as(token_ids)


def logprobs_of(policy: Policy, token_ids: Tensor, action_index: list[int]) -> Tensor:
    return policy.action_logprobs(
        token_ids, position_ids=positions(token_ids), action_index=torch.tensor(action_index)
    )


def gradients(policy: Policy) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in policy.trained_parameters().items()
        if parameter.grad is not None
    }


def wake_lora(policy: Policy) -> None:
    """Give B weights of its own: at 0 the adapter changes nothing and A has no gradient."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in policy.trainable_state().items():
        if ".lora_B." in name:
            tensor.normal_(0.0, 0.2, generator=generator)


# What is trained


def test_lora_stands_on_all_linear_layers_but_the_lm_head(untied: Path) -> None:
    policy = load_policy(untied, qlora_rank=4)
    names = sorted(policy.trained_parameters())
    assert {name.split(".")[-4] for name in names} == set(LINEAR_LAYERS)
    assert len(names) == 2 * 2 * len(LINEAR_LAYERS)  # layers × A and B × targets
    assert {parameter.dtype for parameter in policy.trained_parameters().values()} == {
        torch.float32
    }


def test_loras_first_weights_depend_on_the_seed_alone(tied: Path) -> None:
    torch.manual_seed(1)
    first = load_policy(tied, qlora_rank=4, seed=3).trainable_state()
    torch.manual_seed(2)
    second = load_policy(tied, qlora_rank=4, seed=3).trainable_state()
    other = load_policy(tied, qlora_rank=4, seed=4).trainable_state()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, tensor in first.items():
        if ".lora_A." in name:
            assert not torch.equal(tensor, other[name])
            bound = tensor.shape[1] ** -0.5
            assert 0.5 * bound < tensor.abs().max() <= bound
        else:
            assert not tensor.any()


def test_a_fresh_adapter_changes_no_bit_of_the_log_probabilities(tied: Path) -> None:
    token_ids = some_ids(1, 12)
    lora = logprobs_of(load_policy(tied), token_ids, [3, 8])
    assert torch.equal(lora, logprobs_of(load_policy(tied, tuning="full"), token_ids, [3, 8]))


def test_full_fine_tuning_trains_a_tied_head_once_with_both_its_gradients(tied: Path) -> None:
    policy = load_policy(tied, tuning="full")
    assert "lm_head.weight" not in policy.trained_parameters()
    logprobs_of(policy, some_ids(1, 6), [5]).sum().backward()
    grad = policy.trained_parameters()["model.embed_tokens.weight"].grad
    assert grad is not None
    assert bool(grad.any(dim=1).all())  # as an embedding alone, only the rows of 5 tokens have one


def test_what_is_trained_in_bfloat16_is_kept_in_float32(tied: Path) -> None:
    for tuning in ("lora", "full"):
        policy = load_policy(tied, tuning=tuning, dtype="bfloat16")
        trained = policy.trained_parameters().values()
        assert {parameter.dtype for parameter in trained} == {torch.float32}
        logprobs = logprobs_of(policy, some_ids(1, 12), [3, 8])
        assert logprobs.dtype == torch.float32
        exact = logprobs_of(load_policy(tied), some_ids(1, 12), [3, 8])
        assert 0 < (logprobs - exact).abs().max() < 0.1
        logprobs.sum().backward()
        assert gradients(policy).keys() == policy.trained_parameters().keys()


# What is scored


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_head_on_action_positions_equals_the_softmax_of_all_logits(
    untied: Path, tuning: str
) -> None:
    policy = load_policy(untied, tuning=tuning, chunk_tokens=2, dtype="float64")
    token_ids = some_ids(3, 10)
    action_index = [4, 5, 9, 11, 19, 23, 29]
    model = policy._causal_lm
    everything = model(input_ids=token_ids).logits.log_softmax(-1)
    expected = torch.stack(
        [everything[i // 10, i % 10 - 1, token_ids[i // 10, i % 10]] for i in action_index]
    )
    factors = torch.linspace(-1.0, 2.0, len(action_index), dtype=torch.float64)
    (expected * factors).sum().backward()
    expected_gradients = gradients(policy)
    for parameter in policy.trained_parameters().values():
        parameter.grad = None

    logprobs = logprobs_of(policy, token_ids, action_index)
    (logprobs * factors).sum().backward()
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-12)
    for name, gradient in gradients(policy).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "logit_map", [LogitMap(), LogitMap(0.3), LogitMap(cap=2.0), LogitMap(1.7, cap=3.0)]
)
def test_the_chunk_size_changes_neither_log_probabilities_nor_gradient(logit_map: LogitMap) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(23, 16, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCAB, 16, generator=generator, dtype=torch.float64)
    bias = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    targets = some_ids(23)
    results, frozen_results = [], []
    for chunk_tokens in (1, 7, 23, 1000):
        inputs = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
        logprobs = token_logprobs(
            inputs[0],
            targets,
            weight=inputs[1],
            bias=inputs[2],
            chunk_tokens=chunk_tokens,
            logit_map=logit_map,
        )
        results.append([logprobs, *torch.autograd.grad(logprobs.square().sum(), inputs)])
        # A head that is not trained.
        frozen = hidden.clone().requires_grad_()
        found = token_logprobs(
            frozen,
            targets,
            weight=weight,
            bias=bias,
            chunk_tokens=chunk_tokens,
            logit_map=logit_map,
        )
        (grad,) = torch.autograd.grad(found.square().sum(), frozen)
        assert (found - logprobs).norm() <= 1e-12 * logprobs.norm()
        frozen_results.append(found)
        assert torch.equal(found, frozen_results[0])
        assert (grad - results[0][1]).norm() <= 1e-12 * grad.norm()
    plain = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    logits = (plain[0] @ plain[1].T + plain[2]) * logit_map.scale
    if logit_map.cap is not None:
        logits = logit_map.cap * torch.tanh(logits / logit_map.cap)
    expected = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    results.append([expected, *torch.autograd.grad(expected.square().sum(), plain)])
    for result in results[1:]:
        for mine, reference in zip(result, results[0], strict=True):
            assert (mine - reference).norm() <= 1e-12 * reference.norm()


def test_a_second_backward_gives_the_same_gradient() -> None:
    hidden = torch.linspace(-1, 1, 60).reshape(20, 3).requires_grad_()
    weight = torch.linspace(-2, 2, 3 * VOCAB).reshape(VOCAB, 3)
    logprobs = token_logprobs(hidden, some_ids(20), weight=weight, bias=None, chunk_tokens=8)
    (first,) = torch.autograd.grad(logprobs.sum(), hidden, retain_graph=True)
    (second,) = torch.autograd.grad(logprobs.sum(), hidden)
    torch.testing.assert_close(first, second)


def test_only_positions_that_predict_an_action_token_get_a_gradient(tied: Path) -> None:
    # Row 0: prompt, two sampled tokens, tool text, one sampled token. Row 1: a prompt that holds an
    # assistant turn, one sampled token, an end token that was not sampled, padding.
    #   row 0   p p p A A t t A      row 1   p p p p A e 0 0
    policy = load_policy(tied)
    wake_lora(policy)
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        kept.append(output.last_hidden_state)

    policy.network.body.register_forward_hook(keep)
    token_ids = some_ids(2, 8)
    logprobs_of(policy, token_ids, [3, 4, 7, 8 + 4]).sum().backward()
    grad = kept[0].grad
    assert grad is not None
    predicting = [[2, 3, 6], [3]]
    for row in range(2):
        assert grad[row].any(dim=1).nonzero().flatten().tolist() == predicting[row]


def test_tokens_that_no_action_token_can_see_change_nothing(tied: Path) -> None:
    policy = load_policy(tied)
    wake_lora(policy)
    token_ids = some_ids(2, 8)
    changed = token_ids.clone()
    changed[0, 6:] = (changed[0, 6:] + 1) % VOCAB
    changed[1, 4:] = 0
    results = []
    for ids in (token_ids, changed):
        logprobs = logprobs_of(policy, ids, [3, 5, 8 + 3])
        for parameter in policy.trained_parameters().values():
            parameter.grad = None
        logprobs.sum().backward()
        results.append((logprobs, gradients(policy)))
    (first, first_gradients), (second, second_gradients) = results
    assert torch.equal(first, second)
    for name, gradient in first_gradients.items():
        torch.testing.assert_close(gradient, second_gradients[name], rtol=1e-6, atol=1e-7)


def test_a_row_of_restarting_positions_is_scored_as_separate_trajectories(tied: Path) -> None:
    # Packing without padding: the policy needs nothing but the positions.
    policy = load_policy(tied, dtype="float64")
    token_ids = some_ids(1, 12)
    packed = policy.action_logprobs(
        token_ids,
        position_ids=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]]),
        action_index=torch.tensor([3, 9]),
    )
    alone = [
        logprobs_of(policy, token_ids[:, :5], [3]),
        logprobs_of(policy, token_ids[:, 5:], [4]),
    ]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=1e-12)


def test_activation_checkpointing_changes_no_bit_and_wakes_no_dropout(tied: Path) -> None:
    results = []
    for checkpointing in (False, True):
        policy = load_policy(tied, activation_checkpointing=checkpointing)
        wake_lora(policy)
        calls = 0

        def count(module: Any, args: Any, output: Any) -> None:
            nonlocal calls
            calls += 1

        # The recomputation stops early in a layer, so count at its first part.
        policy.network.body.layers[0].input_layernorm.register_forward_hook(count)  # type: ignore[union-attr,index]
        logprobs = logprobs_of(policy, some_ids(2, 9), [3, 8, 14])
        logprobs.sum().backward()
        results.append((logprobs, gradients(policy), calls))
    plain, checkpointed = results
    assert (plain[2], checkpointed[2]) == (1, 2)
    assert torch.equal(plain[0], checkpointed[0])
    assert all(torch.equal(plain[1][name], checkpointed[1][name]) for name in plain[1])


class OddConfig(Qwen3Config):
    model_type = "odd"


class OddForCausalLM(Qwen3ForCausalLM):
    """Does to its logits what no configuration tells of."""

    config_class = OddConfig  # type: ignore[assignment]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        assert output.logits is not None
        output.logits = output.logits.sinh()
        return output


def test_a_model_that_does_more_with_its_logits_than_is_known_is_refused(tmp_path: Path) -> None:
    AutoConfig.register("odd", OddConfig, exist_ok=True)
    AutoModelForCausalLM.register(OddConfig, OddForCausalLM, exist_ok=True)
    OddForCausalLM(OddConfig(**qwen3_config(vocab_size=VOCAB).to_dict())).save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_policy(tmp_path, tuning="full")
    message = str(caught.value)
    assert message.startswith(
        f"model.path: {tmp_path} cannot be trained: OddForCausalLM does more than apply its LM "
        "head, scale and cap to get logits (difference up to "
    )
    assert message.endswith("); use another architecture")


def test_weights_that_are_not_finite_are_said_to_be_damaged(tmp_path: Path) -> None:
    write_model(tmp_path, tied=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] *= torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_policy(tmp_path)
    assert str(caught.value) == (
        f"model.path: {tmp_path} cannot be trained: its logits are not finite; "
        "its weights are damaged (fetch them again), or too large for model.dtype"
    )


def test_a_student_that_lacks_weights_is_not_trained_on_random_ones(tmp_path: Path) -> None:
    write_model(tmp_path, tied=True)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".0.mlp." not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_policy(tmp_path)
    assert str(caught.value) == (
        f"model.path: {tmp_path} lacks the weights model.layers.0.mlp.down_proj.weight "
        "(3 missing in all)"
    )


def test_a_folder_without_a_model_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"model.path: {tmp_path} cannot be loaded: "):
        load_policy(tmp_path)


# What it costs


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of tensors made and still alive, and remembers the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {
            tensor.untyped_storage()._cdata
            for tensor in tree_iter((args, kwargs))
            if isinstance(tensor, Tensor)
        }
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in before | self._known:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)

        def gone() -> None:
            self._known.discard(key)
            self.alive -= size

        weakref.finalize(storage, gone)


def head_peak_bytes(
    num_tokens: int, vocab_size: int, chunk_tokens: int, *, is_trained: bool = True
) -> int:
    """Return the peak of the head's forward and backward beyond its inputs."""
    hidden = torch.ones(num_tokens, 4, requires_grad=True)
    weight = torch.ones(vocab_size, 4, requires_grad=is_trained)
    targets = torch.zeros(num_tokens, dtype=torch.int64)
    with PeakBytes() as peak:
        token_logprobs(
            hidden, targets, weight=weight, bias=None, chunk_tokens=chunk_tokens
        ).sum().backward()
    return peak.peak


def test_peak_memory_grows_with_chunk_and_vocabulary_and_not_with_tokens() -> None:
    # Of one chunk's logits there is one at a time; the rest is vectors of all tokens.
    one_chunk = 64 * 5000 * 4
    peak = head_peak_bytes(640, 5000, 64)
    assert one_chunk <= peak <= 1.2 * one_chunk
    ten_times_the_tokens = head_peak_bytes(6400, 5000, 64)
    assert ten_times_the_tokens - peak <= (6400 - 640) * 4 * 16
    assert ten_times_the_tokens < 6400 * 5000 * 4 / 10
    assert head_peak_bytes(640, 10000, 64) == pytest.approx(2 * peak, rel=0.1)
    assert head_peak_bytes(640, 5000, 128) == pytest.approx(2 * peak, rel=0.1)


def test_of_a_frozen_head_on_a_cpu_there_is_one_block_of_logits_whatever_the_vocabulary() -> None:
    one_block = 2**19 * 4
    small, large = (head_peak_bytes(640, size, 64, is_trained=False) for size in (10_000, 20_000))
    assert one_block <= small <= large <= 1.2 * one_block


@pytest.mark.parametrize(
    "logit_map", [LogitMap(), LogitMap(0.3), LogitMap(cap=2.0), LogitMap(1.7, cap=3.0)]
)
def test_blocks_of_the_vocabulary_give_what_the_whole_gives(logit_map: LogitMap) -> None:
    """Targets in each block, at borders too; the greatest logits in the last, in the first."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 16, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(120_000, 16, generator=generator, dtype=torch.float64)
    weight *= torch.linspace(0.1, 2, 120_000, dtype=torch.float64)[:, None]
    bias = torch.linspace(1, 0, 120_000, dtype=torch.float64)
    border = 2**19 // 5
    targets = torch.tensor([0, 7, border - 1, border, 119_999])
    found = token_logprobs(
        hidden, targets, weight=weight, bias=bias, chunk_tokens=5, logit_map=logit_map
    )
    logits = (hidden @ weight.T + bias) * logit_map.scale
    if logit_map.cap is not None:
        logits = logit_map.cap * torch.tanh(logits / logit_map.cap)
    expected = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    factors = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0], dtype=torch.float64)
    (grad,) = torch.autograd.grad((found * factors).sum(), hidden)
    (wanted,) = torch.autograd.grad((expected * factors).sum(), hidden)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, wanted, rtol=1e-11, atol=1e-12)


def test_the_measure_of_peak_memory_sees_the_logits_of_a_plain_head() -> None:
    hidden = torch.ones(640, 4, requires_grad=True)
    with PeakBytes() as peak:
        (hidden @ torch.ones(4, 5000)).log_softmax(1)[:, 0].sum().backward()
    assert peak.peak >= 2 * 640 * 5000 * 4


@pytest.mark.parametrize(("vocab_size", "expected"), [(151_936, 220), (1024, 32_768), (10**9, 1)])
def test_the_default_chunk_holds_as_many_logits_for_every_vocabulary(
    vocab_size: int, expected: int
) -> None:
    assert default_chunk_tokens(vocab_size) == expected


def test_logits_of_a_bfloat16_head_are_not_rounded() -> None:
    """Beside the same numbers in float64; rounded logits would be 0.03 and more off."""
    generator = torch.Generator().manual_seed(5)
    hidden = (3 * torch.randn(40, 16, generator=generator)).bfloat16()
    weight = (3 * torch.randn(9000, 16, generator=generator)).bfloat16()
    bias = torch.randn(9000, generator=generator).bfloat16()
    targets = torch.arange(40)
    given = token_logprobs(hidden, targets, weight=weight, bias=bias, chunk_tokens=16)
    exact = (hidden.double() @ weight.double().t() + bias.double()).log_softmax(1)
    exact = exact.gather(1, targets[:, None]).squeeze(1)
    rounded = (hidden @ weight.t() + bias).double().log_softmax(1)
    rounded = rounded.gather(1, targets[:, None]).squeeze(1)
    assert given.dtype == torch.float32
    assert (given - exact).abs().max() < 1e-4
    assert (rounded - exact).abs().max() > 0.03


def test_logits_of_a_float32_head_have_the_bits_of_linear() -> None:
    generator = torch.Generator().manual_seed(6)
    hidden, weight = (torch.randn(9000, 16, generator=generator) for _ in range(2))
    hidden, targets = hidden[:40], torch.arange(40)
    given = token_logprobs(hidden, targets, weight=weight, bias=None, chunk_tokens=40)
    logits = torch.nn.functional.linear(hidden, weight)
    highest = logits.amax(1)
    plain = (logits - highest[:, None]).exp().sum(1).log() + highest
    assert torch.equal(given, logits[targets, targets] - plain)


# What is saved


def reloaded_logprobs(model: Any, token_ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(input_ids=token_ids).logits.log_softmax(-1)
    return logits[:, :-1].gather(2, token_ids[:, 1:, None]).flatten()


def all_logprobs(policy: Policy, token_ids: Tensor) -> Tensor:
    return logprobs_of(policy, token_ids, list(range(1, token_ids.shape[1]))).detach()


def test_an_adapter_goes_out_in_the_format_of_its_engine(tied: Path, tmp_path: Path) -> None:
    policy = load_policy(tied, qlora_rank=4)
    wake_lora(policy)
    policy.save(tmp_path / "trained")
    policy.save(tmp_path / "served", adapter_dtype="bfloat16")
    trained, served = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("trained", "served")
    )
    assert trained.keys() == served.keys()
    assert {one.dtype for one in trained.values()} == {torch.float32}
    # What an engine would round them to, no more and no less.
    assert all(torch.equal(served[name], one.bfloat16()) for name, one in trained.items())


def test_a_saved_adapter_loads_in_peft_and_merges(tied: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = load_policy(tied, qlora_rank=4)
    wake_lora(policy)
    policy.save(tmp_path / "adapter")
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tied)
    assert config["target_modules"] == LINEAR_LAYERS
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.0)
    assert config["inference_mode"] is True

    token_ids = some_ids(1, 12)
    expected = all_logprobs(policy, token_ids)
    base = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32)
    assert (reloaded_logprobs(base, token_ids) - expected).abs().max() > 0.1
    model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(reloaded_logprobs(model, token_ids), expected, rtol=0, atol=1e-5)

    export_merged(str(tied), adapter_dir=tmp_path / "adapter", output_dir=tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert merged.dtype == torch.float32
    torch.testing.assert_close(reloaded_logprobs(merged, token_ids), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_loads_in_transformers_in_its_precision(
    tied: Path, tmp_path: Path, dtype: str
) -> None:
    from transformers import AutoModelForCausalLM

    policy = load_policy(tied, tuning="full", dtype=dtype)
    for tensor in policy.trainable_state().values():
        tensor.mul_(1.1)
    policy.save(tmp_path)
    names = {"config.json", "generation_config.json", "model.safetensors"}
    assert {file.name for file in tmp_path.iterdir()} == names
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == policy.trainable_state().keys()  # a tied head is not there twice
    assert {tensor.dtype for tensor in saved.values()} == {policy.dtype}
    for name, tensor in policy.trainable_state().items():
        assert torch.equal(saved[name], tensor.to(policy.dtype))
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert model.dtype == policy.dtype
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_trained_weights_come_back_bit_for_bit(tied: Path, tuning: str) -> None:
    policy = load_policy(tied, tuning=tuning, qlora_rank=4)
    wake_lora(policy)
    state = {name: tensor.clone() for name, tensor in policy.trainable_state().items()}
    other = load_policy(tied, tuning=tuning, qlora_rank=4, seed=99)
    other.load_trainable_state(state)
    restored = other.trainable_state()
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], state[name]) for name in state)


def test_weights_of_another_student_are_refused(tied: Path) -> None:
    state = load_policy(tied, qlora_rank=4).trainable_state()
    with pytest.raises(CheckpointError) as caught:
        load_policy(tied, qlora_rank=8).load_trainable_state(state)
    assert str(caught.value) == (
        "the checkpoint is of another student: its base_model.model.model.layers.0.mlp.down_proj."
        "lora_A.default.weight is (4, 48), this run's is (8, 48); start anew with --fresh"
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bits are compared: keep the order of sums the same whatever machine this runs on."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
