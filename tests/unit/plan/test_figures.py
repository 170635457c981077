"""Figures of published models: their config.json is all that is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from rnow.errors import ModelError
from rnow.plan.figures import ModelFigures, load_figures, read_figures

CONFIGS = Path(__file__).resolve().parents[2] / "fixtures" / "configs"


def config(name: str, **changes: Any) -> dict[str, Any]:
    published: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return published | changes


def figures(name: str, **changes: Any) -> ModelFigures:
    return read_figures(name, config(name, **changes))


# What is exact is counted from the published files; the others are as their makers round them,
# active ones to two digits.
# Qwen3-1.7B is 2.03 billion in its file, which holds the tied LM head a second time.
@pytest.mark.parametrize(
    ("name", "published", "active"),
    [
        ("Qwen3-32B", 32_762_123_264, None),
        ("Qwen3-8B", 8_190_735_360, None),
        ("Qwen3-4B", 4_022_468_096, None),
        ("Qwen3-1.7B", 1_720_574_976, None),
        ("Qwen3-30B-A3B", 30_532_122_624, 3.3e9),
        ("Qwen3-235B-A22B", 235_093_634_560, 22e9),
        ("gemma-3-4b-it", 4_300_079_472, None),
        ("gemma-3-27b-it", 27_432_406_640, None),
        ("GLM-4-9B-0414", 9_400_094_720, None),
        ("gpt-oss-20b", 20_914_757_184, None),
        ("Qwen3-Next-80B-A3B-Instruct", 79.67e9, None),
        ("DeepSeek-V2-Lite", 15_706_484_224, 2.66e9),
        ("Qwen3.5-9B", 8_953_803_264, None),
    ],
)
def test_parameters_are_those_of_the_published_models(
    name: str, published: float, active: float | None
) -> None:
    read = figures(name)
    is_exact = isinstance(published, int)
    assert read.num_parameters == (published if is_exact else pytest.approx(published, rel=1e-3))
    if active is None:
        assert read.num_active_parameters <= read.num_parameters
    else:
        assert read.num_active_parameters == pytest.approx(active, rel=0.02)


def test_gpt_oss_meets_as_many_of_its_experts_as_its_makers_say() -> None:
    # Theirs leaves the embedding out: 3.61 billion.
    read = figures("gpt-oss-20b")
    embedding = read.vocab_size * read.hidden_size
    assert round((read.num_active_parameters - embedding) / 1e9, 2) == 3.61


def test_a_dense_model_meets_all_of_its_weights() -> None:
    assert figures("Qwen3-8B").num_active_parameters == figures("Qwen3-8B").num_parameters


def test_servers_also_load_what_sees() -> None:
    # The vision tower of Qwen3.5 is no part of the network that is trained.
    assert figures("Qwen3.5-9B").num_beside_parameters == pytest.approx(0.456e9, rel=0.01)
    assert figures("gemma-3-4b-it").num_beside_parameters == 0


def test_an_adapter_has_the_parameters_that_peft_gives_it() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rnow.learner.weights import add_lora

    for name in ("Qwen3-4B", "Qwen3-30B-A3B", "gpt-oss-20b"):
        small = config(name, num_hidden_layers=2, layer_types=None)
        with torch.device("meta"):
            bare = AutoModelForCausalLM.from_config(AutoConfig.for_model(**small))
            model = add_lora(bare, path=name, rank=8, alpha=16, seed=0)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert read_figures(name, small).num_lora_parameters(8) == trained


def test_a_token_of_qwen3_8b_has_144_kib_of_keys_and_values() -> None:
    # 36 layers × 2 × 8 heads × 128 × 2 bytes
    assert figures("Qwen3-8B").kv_bytes(1) == 144 * 1024
    assert figures("Qwen3-8B").kv_bytes(1, num_shards=4) == 36 * 1024
    # 8 heads on 16 GPUs: every head twice
    assert figures("Qwen3-8B").kv_bytes(1, num_shards=16) == 18 * 1024


def test_a_sliding_window_keeps_its_own_tokens_and_those_that_are_read() -> None:
    gemma = figures("gemma-3-4b-it")
    # 5 of 34 layers keep all, 29 a window of 1,024 and the 2,048 that are read at once; a token of
    # a layer is 2 × 4 heads × 256 × 2 bytes.
    whole, windowed = 5 * 4096, 29 * 4096
    assert gemma.kv_bytes(32768, scheduled=2048) == whole * 32768 + windowed * 3072
    assert gemma.kv_bytes(2000, scheduled=2048) == (whole + windowed) * 2000
    # The local engine keeps whole rows.
    assert gemma.local_kv_bytes(32768, dtype_bytes=2) == (whole + windowed) * 32768
    # 12 layers of each, 2 × 8 heads × 64 × 2 bytes
    assert figures("gpt-oss-20b").kv_bytes(32768) == 12 * 2048 * (32768 + 128)


def test_a_latent_is_one_row_a_token_and_whole_on_every_gpu() -> None:
    deepseek = figures("DeepSeek-V2-Lite")
    # 27 layers × (512 + 64) × 2 bytes
    assert deepseek.kv_bytes(100) == deepseek.kv_bytes(100, num_shards=8) == 100 * 27 * 576 * 2
    # transformers keeps what it makes of it: 16 heads × (128 + 64 + 128)
    assert deepseek.local_kv_bytes(100, dtype_bytes=2) == 100 * 27 * 16 * 320 * 2


def test_linear_attention_keeps_a_state_however_long_the_text() -> None:
    qwen = figures("Qwen3.5-9B")
    # 8 of 32 layers of 2 × 4 heads × 256; 24 states of 32 × 128 × 128 and 3 × 8,192 of a
    # convolution in float32, two for each text.
    states = 24 * (32 * 128 * 128 + 3 * 8192) * 4 * 2
    assert qwen.kv_bytes(1000) == 8 * 2048 * 2 * 1000 + states
    assert qwen.kv_bytes(32768) - qwen.kv_bytes(0) == 8 * 4096 * 32768


def test_layers_of_a_kind_that_is_not_known_are_counted_as_full_attention_and_named() -> None:
    kinds = ["full_attention", "window_attention"] * 18
    other = figures("Qwen3-8B", layer_types=kinds)
    assert other.kv_bytes(1) == 144 * 1024
    assert other.notes == (
        "layers of kind window_attention are counted as full attention, an upper bound",
    )


def test_narrow_weights_are_those_that_their_method_makes_narrow() -> None:
    model = figures("Qwen3-8B")
    assert model.weight_bytes(2, quantization=None) == 2 * 8_190_735_360
    assert model.weight_bytes(2, quantization="fp8") == 2 * 8_190_735_360 - 6_945_767_424
    published = figures("Qwen3-8B", quantization_config={"quant_method": "fp8"})
    assert published.weight_bytes(2, quantization=None) == model.weight_bytes(2, quantization="fp8")
    # gpt-oss: its files are 13.76 GB, experts in 17 bits for each four weights.
    assert figures("gpt-oss-20b").weight_bytes(2, quantization=None) == pytest.approx(
        13.76e9, rel=0.01
    )


def test_weights_of_another_method_are_what_their_files_hold_or_an_upper_bound() -> None:
    awq = config("Qwen3-8B", quantization_config={"quant_method": "awq"})
    here = read_figures("Qwen3-8B-AWQ", awq, file_bytes=6_100_000_000)
    assert here.weight_bytes(2, quantization=None) == 6_100_000_000
    elsewhere = read_figures("Qwen3-8B-AWQ", awq)
    assert elsewhere.weight_bytes(2, quantization=None) == 2 * 8_190_735_360
    assert elsewhere.notes == ("its weights, quantized by awq, are counted as if they were not",)


def test_a_network_that_cannot_be_made_has_the_weights_of_its_files(tmp_path: Path) -> None:
    broken = config("Qwen3-8B", pad_token_id=10**6)
    (tmp_path / "config.json").write_text(json.dumps(broken))
    with pytest.raises(ModelError, match="no network can be made of it"):
        load_figures("x", tmp_path)
    index = {"metadata": {"total_size": 16_381_470_720}, "weight_map": {}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    read = load_figures("x", tmp_path)
    assert read.num_parameters == 8_190_735_360
    assert read.notes == (
        "weights are what its files hold (x: config.json: no network can be made of it: "
        "Padding_idx must be within num_embeddings)",
    )


def test_a_model_is_cut_where_its_heads_and_mlp_allow() -> None:
    assert figures("Qwen3-32B").tensor_parallel_sizes() == (1, 2, 4, 8)
    narrow = figures("Qwen3-8B", num_attention_heads=28, num_key_value_heads=4)
    assert narrow.tensor_parallel_sizes() == (1, 2, 4)
    assert figures("Qwen3-235B-A22B").tensor_parallel_sizes() == (1, 2, 4, 8)
    # One latent for all heads
    assert figures("DeepSeek-V2-Lite").tensor_parallel_sizes() == (1, 2, 4, 8)


def test_a_model_without_heads_has_no_figures() -> None:
    with pytest.raises(ModelError) as error:
        read_figures("x", {"model_type": "mamba"})
    assert str(error.value) == "x: its config.json has no whole number as num_attention_heads"


def test_a_folder_without_config_json_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        load_figures("models/student", tmp_path)
    file = tmp_path / "config.json"
    assert str(error.value) == (
        f"{file} cannot be read: [Errno 2] No such file or directory: '{file}'"
    )
    file.write_text(json.dumps(config("Qwen3-8B")))
    assert load_figures("Qwen3-8B", tmp_path) == figures("Qwen3-8B")
