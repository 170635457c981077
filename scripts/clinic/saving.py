"""Weights to a folder that transformers and vLLM load as it is."""

import json
from pathlib import Path

import torch
from clinic.network import Shape, Weights, forward, logits
from clinic.tokenizer import END_OF_TURN, PAD, save_tokenizer
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, Qwen3Config

__all__ = ["save_model"]

_MAX_POSITIONS = 2048
_TOLERANCE = 1e-4  # largest difference of a logit to transformers' own


def save_model(
    weights: Weights, shape: Shape, tokenizer: Tokenizer, folder: Path, *, chat_template: str
) -> None:
    """Write model and tokenizer, and assert that transformers computes what training did."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder, chat_template=chat_template)
    stop, pad = tokenizer.token_to_id(END_OF_TURN), tokenizer.token_to_id(PAD)
    config = Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        dtype="float32",
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=_MAX_POSITIONS,
        max_window_layers=shape.layers,
        rms_norm_eps=shape.eps,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        eos_token_id=stop,
        pad_token_id=pad,
    )
    config.save_pretrained(folder)
    generation = {"eos_token_id": [stop, pad], "pad_token_id": pad, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _assert_same(weights, shape, folder)


@torch.no_grad()
def _assert_same(weights: Weights, shape: Shape, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(shape.vocab_size)[None, :300]
    ours = logits(weights, forward(weights, shape, ids))
    gap = (ours - model(ids).logits).abs().max().item()
    assert gap < _TOLERANCE, f"transformers differs by {gap} from what was trained"
