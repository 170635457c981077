"""Tiny networks of random weights, one of each family that people train."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_SIZES: Mapping[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_WINDOW = {"sliding_window": 8}
_GEMMA = {**_WINDOW, "query_pre_attn_scalar": 8}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"]}

# Name of the family -> class of its configuration, and what its sizes are beside `_SIZES`.
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "qwen3-moe": ("Qwen3MoeConfig", _EXPERTS),
    "gemma2": (
        "Gemma2Config",
        {**_GEMMA, **_MIXED, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": ("Gemma3TextConfig", {**_GEMMA, **_MIXED}),
    "mistral": ("MistralConfig", _WINDOW),
    "phi3": ("Phi3Config", {}),
    "glm4": ("Glm4Config", {"tie_word_embeddings": False}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "gpt-oss": (
        "GptOssConfig",
        {**_WINDOW, **_MIXED, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "granite": (
        "GraniteConfig",
        {
            "logits_scaling": 4.0,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
        },
    ),
    "cohere": ("CohereConfig", {"logit_scale": 0.3}),
}


def tiny_model(family: str, *, seed: int = 0, **sizes: Any) -> Any:
    """Return a network of `family` whose weights depend on `seed` alone, in float32."""
    import torch
    import transformers

    name, own = FAMILIES[family]
    config = getattr(transformers, name)(**{**_SIZES, **own, **sizes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            # Norms, sinks and biases too: at their first values a left-out one would not show.
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        return model.eval()


def refusal(family: str, tuning: str) -> str | None:
    """Return what `rnow check` says where it refuses to train the family on vLLM on a CPU."""
    from rnow.errors import ModelError
    from rnow.plan.network import Use, check_network

    use = Use(window=512, engine="vllm", device="cpu", is_trained=True, is_adapted=tuning == "lora")
    with TemporaryDirectory() as folder:
        tiny_model(family).config.save_pretrained(folder)
        try:
            check_network(family, Path(folder), use)
        except ModelError as error:
            return str(error)
    return None
