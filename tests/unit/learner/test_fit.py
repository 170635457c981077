import json
from pathlib import Path

import pytest
import torch
import transformers
from builders import qwen3
from safetensors.torch import load_file, save_file
from torch import Tensor

from rnow.errors import ModelError
from rnow.learner.fit import check_fit

QUERY = "model.layers.0.self_attn.q_proj.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
EXPERT = "model.layers.0.mlp.experts.2.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    qwen3().save_pretrained(tmp_path)
    return tmp_path


def fit(folder: Path, **changes: Tensor | None) -> tuple[str, ...]:
    """Check the files of a model with other weights, or without those that are None."""
    weights = load_file(folder / "model.safetensors") | changes
    left = {name: value for name, value in weights.items() if value is not None}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    return check_fit(folder, {name: tuple(value.shape) for name, value in left.items()})


def test_the_weights_of_the_network_itself_fit(folder: Path) -> None:
    assert fit(folder) == ()


def test_a_weight_that_is_missing_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError) as caught:
        fit(folder, **{QUERY: None, GATE: None})
    assert str(caught.value) == f"{folder}: lacks the weights {GATE} (2 missing in all)"


def test_a_head_that_is_missing_is_refused_where_it_is_not_the_embedding(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for is_tied in (True, False):
        said = json.dumps(config | {"tie_word_embeddings": is_tied})
        (folder / "config.json").write_text(said)
        if is_tied:
            assert fit(folder, **{"lm_head.weight": None}) == ()
            continue
        with pytest.raises(ModelError, match=r": lacks the weights lm_head.weight \(1 missing "):
            fit(folder)


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    wanted = tuple(load_file(folder / "model.safetensors")[GATE].shape)
    with pytest.raises(ModelError) as caught:
        fit(folder, **{GATE: torch.ones(8, 32)})
    assert str(caught.value) == (
        f"{folder}: {GATE} is 8 x 32 in its files, and {wanted[0]} x {wanted[1]} by its "
        "config.json (1 such weights in all); take both from the same model"
    )


def test_weights_that_the_network_has_no_place_for_are_said(folder: Path) -> None:
    num = len(load_file(folder / "model.safetensors"))
    assert fit(folder, extra=torch.ones(2)) == (
        f"{folder}: 1 of its {num + 1} weights are of no part of the network that its config.json "
        "describes, and are left out: extra",
    )


def test_an_expert_that_is_missing_is_refused(tmp_path: Path) -> None:
    config = transformers.Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
    )
    transformers.Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    assert fit(tmp_path) == ()
    with pytest.raises(ModelError, match=r"experts.down_proj is 3 x 16 x 8 in its files, and 4 x "):
        fit(tmp_path, **{EXPERT: None})
