import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from builders import model_settings
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rnow.plan.figures import ModelFigures, read_figures
from rnow.plan.memory import (
    GIB,
    RoleMemory,
    ServerLoad,
    TrainerLoad,
    local_memory,
    server_memory,
    trainer_memory,
)

CONFIGS = Path(__file__).resolve().parents[2] / "fixtures" / "configs"


def config(name: str, **changes: Any) -> dict[str, Any]:
    published: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return published | changes


def figures(name: str, **changes: Any) -> ModelFigures:
    return read_figures(name, config(name, **changes))


def server_load(**changes: Any) -> ServerLoad:
    settings: dict[str, Any] = {
        "dtype_bytes": 2,
        "quantization": None,
        "max_model_len": 32768,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 16,
        "lora_rank": None,
        "scores": False,
    }
    return ServerLoad(**(settings | changes))


def trainer_load(tuning: Literal["lora", "full"], **changes: Any) -> TrainerLoad:
    load = TrainerLoad(
        tuning=tuning, lora_rank=32, dtype_bytes=2, max_tokens=32768, checkpointing=True
    )
    return replace(load, **changes)


def test_prompt_logprobs_grow_with_scheduled_tokens_and_vocabulary_of_a_teacher() -> None:
    model = figures("Qwen3-32B")
    memory = server_memory(model, server_load(scores=True, max_num_batched_tokens=8192))
    assert memory.prompt_logprobs == 8192 * 151936 * 8
    assert server_memory(model, server_load()).prompt_logprobs == 0


def test_a_server_over_two_gpus_has_half_the_weights_on_each() -> None:
    model = figures("Qwen3-32B")
    one = server_memory(model, server_load(scores=True))
    two = server_memory(model, server_load(scores=True), num_gpus=2)
    assert two == replace(one, weights=32_762_123_264, overhead=one.overhead + GIB)


def test_adapter_slots_have_a_rank_that_vllm_knows() -> None:
    model = figures("Qwen3-8B")
    slots = server_memory(model, server_load(lora_rank=20)).lora
    assert slots == 2 * 2 * model.num_lora_parameters(32)


def test_a_local_student_holds_adapters_beside_its_weights_or_merged_copies() -> None:
    model = figures("Qwen3-4B")
    narrow = local_memory(model, server_load(lora_rank=32), num_policies=2)
    assert narrow.weights == model.weight_bytes(2, quantization=None)
    assert narrow.lora == 2 * model.num_lora_parameters(32) * 2
    wide = local_memory(model, server_load(lora_rank=32, dtype_bytes=4), num_policies=2)
    assert (wide.weights, wide.lora) == (3 * model.weight_bytes(4, quantization=None), 0)
    whole = local_memory(model, server_load(lora_rank=None), num_policies=2)
    assert (whole.weights, whole.lora) == (3 * model.weight_bytes(2, quantization=None), 0)
    teacher = local_memory(model, server_load(scores=True), num_policies=0)
    assert (teacher.weights, teacher.lora) == (model.weight_bytes(2, quantization=None), 0)


def test_the_smallest_kv_cache_is_one_sequence_in_whole_blocks() -> None:
    assert server_load(max_model_len=32768).min_kv_tokens == 32768 + 16
    assert server_load(max_model_len=32769).min_kv_tokens == 32768 + 32


def test_full_fine_tuning_keeps_sixteen_bytes_a_parameter() -> None:
    memory = trainer_memory(figures("Qwen3-1.7B"), trainer_load("full"))
    assert memory.weights + memory.gradients + memory.optimizer == 16 * 1_720_574_976
    assert memory.lora == 0


def test_an_optimizer_step_on_short_sequences_takes_more_than_their_activations() -> None:
    memory = trainer_memory(figures("Qwen3-4B"), trainer_load("full", max_tokens=16))
    assert memory.activations == 4 * 4_022_468_096


def test_without_checkpoints_every_layer_keeps_its_own() -> None:
    few = trainer_memory(figures("Qwen3-8B"), trainer_load("lora"))
    many = trainer_memory(figures("Qwen3-8B"), trainer_load("lora", checkpointing=False))
    # 35 further layers of 192,512 bytes a token, in the place of 36 checkpoints of 8,192
    assert many.activations - few.activations == 32768 * (35 * 192_512 - 36 * 8_192)


def test_total_is_the_sum_of_all_parts() -> None:
    memory = RoleMemory(
        weights=1,
        lora=10,
        gradients=100,
        optimizer=1000,
        activations=10_000,
        kv_cache=100_000,
        prompt_logprobs=1_000_000,
        overhead=10_000_000,
    )
    assert memory.total == 11_111_111


# The formula against the network that is trained: real sizes but for the number of layers.
@pytest.mark.parametrize(
    ("name", "tuning", "checkpointing"),
    [
        ("Qwen3-4B", "lora", True),
        pytest.param("Qwen3-1.7B", "lora", True, marks=pytest.mark.slow),
        pytest.param("Qwen3-32B", "lora", True, marks=pytest.mark.slow),
        ("Qwen3-8B", "lora", False),
        pytest.param("Qwen3-8B", "full", True, marks=pytest.mark.slow),
        pytest.param("Qwen3-32B", "full", True, marks=pytest.mark.slow),
    ],
)
def test_activations_are_what_a_forward_and_backward_allocate(
    name: str, tuning: Literal["lora", "full"], checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = config(name, num_hidden_layers=3, tie_word_embeddings=False)
    load = trainer_load(tuning, checkpointing=checkpointing)
    counted = count_allocations(published, load, monkeypatch)
    model = read_figures(name, published)
    expected = trainer_memory(model, load).activations
    if tuning == "lora":
        assert expected == pytest.approx(counted, rel=0.03)
    else:
        # The first micro-batch makes the gradients too; the head's is there when the rest peaks.
        counted -= 4 * model.vocab_size * model.hidden_size
        assert counted <= expected <= 1.12 * counted


@pytest.mark.slow
def test_activations_of_a_mixture_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    published = config("Qwen3-30B-A3B", num_hidden_layers=3)
    load = trainer_load("lora", max_tokens=8192)
    counted = count_allocations(published, load, monkeypatch)
    expected = trainer_memory(read_figures("Qwen3-30B-A3B", published), load).activations
    assert counted <= expected <= 1.15 * counted


def count_allocations(
    published: dict[str, Any], load: TrainerLoad, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Return the bytes allocated at once, beyond weights, by a forward and backward of a model.

    Its tensors are fake: they have sizes and no storage.
    """
    import transformers.masking_utils
    from torch._subclasses.fake_tensor import FakeTensorMode

    from rnow.learner.policy import Policy

    # A network of fake tensors is taken for one that is being exported, and gets a mask for packed
    # sequences that a real one does not.
    monkeypatch.setattr(
        transformers.masking_utils, "find_packed_sequence_indices", lambda *_, **__: None
    )
    lora = load.tuning == "lora"
    network = plain_model(published, torch.bfloat16 if lora else torch.float32)
    if lora:
        network = with_lora(network, rank=load.lora_rank)
    with FakeTensorMode():
        for module in network.modules():
            for name, old in list(module.named_parameters(recurse=False)):
                empty = torch.empty(old.shape, dtype=old.dtype)
                module.register_parameter(
                    name, nn.Parameter(empty, requires_grad=old.requires_grad)
                )
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))
        policy = Policy(
            network,
            settings=model_settings(tuning=load.tuning),
            dtype=torch.bfloat16,
            activation_checkpointing=load.checkpointing,
        )
        policy._set_modes(policy.device)  # Policy.load would read a model's files
        token_ids = torch.zeros(1, load.max_tokens, dtype=torch.long)
        action_index = torch.arange(1, load.max_tokens)
        position_ids = torch.arange(load.max_tokens)[None]
        counter = AllocationCounter(network)
        with counter:
            policy.action_logprobs(
                token_ids, position_ids=position_ids, action_index=action_index
            ).mean().backward()
    return counter.peak


class AllocationCounter(TorchDispatchMode):
    """Follows the life of every storage that operations make."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        # Weights are not new when an operation hands them on.
        self._alive: dict[int, Any] = {
            tensor.untyped_storage()._cdata: None for tensor in network.parameters()
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        self.peak = max(self.peak, self._now)
        return output

    def _follow(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def forget(_: object) -> None:
            del self._alive[key]
            self._now -= size

        self._alive[key] = weakref.ref(storage, forget)
        self._now += size


def plain_model(published: dict[str, Any], dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**published), dtype=dtype)


def with_lora(network: Any, *, rank: int) -> Any:
    from rnow.learner.weights import add_lora

    with torch.device("meta"):
        return add_lora(network, path="student", rank=rank, alpha=2 * rank, seed=0)
