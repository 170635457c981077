import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from builders import model_settings, qwen3, qwen3_config
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rnow.errors import ModelError
from rnow.plan.figures import ModelFigures, load_figures, read_figures
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
    return read_figures(f"Qwen/{name}", config(name, **changes))


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


# The last is 2.03 billion in its file, which holds the tied LM head a second time.
@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("Qwen3-32B", 32_762_123_264),
        ("Qwen3-8B", 8_190_735_360),
        ("Qwen3-4B", 4_022_468_096),
        ("Qwen3-1.7B", 1_720_574_976),
    ],
)
def test_parameters_are_those_of_the_published_models(name: str, num_parameters: int) -> None:
    assert figures(name).num_parameters == num_parameters


@pytest.mark.parametrize("name", ["Qwen3-32B", "Qwen3-1.7B"])
def test_parameters_are_those_of_the_model_that_transformers_builds(name: str) -> None:
    with torch.device("meta"):
        model = qwen3(**config(name, num_hidden_layers=3))
    assert figures(name, num_hidden_layers=3).num_parameters == model.num_parameters()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_other_families_have_the_biases_that_transformers_gives_them(
    family: str, with_bias: bool
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 50,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    if family == "llama":
        sizes |= {"attention_bias": with_bias, "mlp_bias": with_bias}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    read = read_figures("x", {"model_type": family, **sizes})
    assert read.num_parameters == model.num_parameters()


def test_an_adapter_has_the_parameters_that_peft_gives_it() -> None:
    model = lora_model(figures("Qwen3-4B", num_hidden_layers=2), rank=8)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert figures("Qwen3-4B", num_hidden_layers=2).num_lora_parameters(8) == trained


def test_a_token_of_qwen3_8b_has_144_kib_of_keys_and_values() -> None:
    # 36 layers × 2 × 8 heads × 128 × 2 bytes
    assert figures("Qwen3-8B").kv_bytes(1) == 144 * 1024
    assert figures("Qwen3-8B").kv_bytes(1, num_shards=4) == 36 * 1024
    # 8 heads on 16 GPUs: every head twice
    assert figures("Qwen3-8B").kv_bytes(1, num_shards=16) == 18 * 1024


def test_fp8_is_for_the_layers_matrices_alone() -> None:
    model = figures("Qwen3-8B")
    assert model.weight_bytes(2, quantization=None) == 2 * 8_190_735_360
    assert model.weight_bytes(2, quantization="fp8") == 2 * 8_190_735_360 - 6_945_767_424
    published = figures("Qwen3-8B", quantization_config={"quant_method": "fp8"})
    assert published.weight_bytes(2, quantization=None) == model.weight_bytes(2, quantization="fp8")


def test_a_model_is_cut_where_its_heads_and_mlp_allow() -> None:
    assert figures("Qwen3-32B").tensor_parallel_sizes() == (1, 2, 4, 8)
    assert figures(
        "Qwen3-8B", num_attention_heads=28, num_key_value_heads=4
    ).tensor_parallel_sizes() == (1, 2, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "qwen3_moe"},
            "Qwen/Qwen3-8B: the memory of model type qwen3_moe is not known here, "
            "only that of llama, mistral, qwen2, qwen3",
        ),
        (
            {"hidden_size": None, "vocab_size": "many"},
            "Qwen/Qwen3-8B: its config.json has no whole number as hidden_size, vocab_size",
        ),
        (
            {"quantization_config": {"quant_method": "awq"}},
            "Qwen/Qwen3-8B: the memory of weights quantized by awq is not known here, only of fp8",
        ),
    ],
)
def test_no_number_is_made_up_for_what_is_not_known(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as error:
        figures("Qwen3-8B", **changes)
    assert str(error.value) == message


def test_a_folder_without_config_json_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        load_figures("models/student", tmp_path)
    file = tmp_path / "config.json"
    assert str(error.value) == (
        f"{file} cannot be read: [Errno 2] No such file or directory: '{file}'"
    )
    file.write_text(json.dumps(config("Qwen3-8B")))
    assert load_figures("Qwen/Qwen3-8B", tmp_path) == figures("Qwen3-8B")


def test_stretched_positions_reach_further() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert figures("Qwen3-8B", rope_scaling=yarn).max_tokens == 131072
    assert figures("Qwen3-8B", rope_scaling=None).max_tokens == 40960


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
    model = figures(name, num_hidden_layers=3, tie_word_embeddings=False)
    load = trainer_load(tuning, checkpointing=checkpointing)
    counted = count_allocations(model, load, monkeypatch)
    expected = trainer_memory(model, load).activations
    if tuning == "lora":
        assert expected == pytest.approx(counted, rel=0.03)
    else:
        # The first micro-batch makes the gradients too; the head's is there when the rest peaks.
        counted -= 4 * model.vocab_size * model.hidden_size
        assert counted <= expected <= 1.12 * counted


def count_allocations(
    model: ModelFigures, load: TrainerLoad, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Return the bytes allocated at once, beyond weights, by a forward and backward of `model`.

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
    network = lora_model(model, rank=load.lora_rank) if lora else plain_model(model, torch.float32)
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


def plain_model(model: ModelFigures, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    settings = qwen3_config(
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        tie_word_embeddings=model.is_tied,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(settings, dtype=dtype)


def lora_model(model: ModelFigures, *, rank: int) -> Any:
    from rnow.learner.weights import add_lora

    with torch.device("meta"):
        return add_lora(
            plain_model(model, torch.bfloat16), path=model.path, rank=rank, alpha=2 * rank, seed=0
        )
