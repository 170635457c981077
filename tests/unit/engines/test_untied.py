import json
from pathlib import Path

import pytest
import torch
from families import tiny_model
from safetensors.torch import load_file, save_file

from rnow.engines.vllm.untied import is_tied, needs_untying, untied_folder
from rnow.errors import ModelError

EMBEDDING = torch.arange(6).reshape(3, 2).to(torch.bfloat16)
NORM = torch.ones(2)


def make_model(folder: Path, *, shards: bool = False) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 2, "tie_word_embeddings": true}')
    (folder / "tokenizer.json").write_text("{}")
    embedding = {"model.embed_tokens.weight": EMBEDDING}
    if shards:
        save_file({"model.norm.weight": NORM}, folder / "model-1.safetensors")
        save_file({"model.a": NORM, **embedding}, folder / "model-2.safetensors")
        index = {
            "metadata": {},
            "weight_map": {
                "model.norm.weight": "model-1.safetensors",
                "model.embed_tokens.weight": "model-2.safetensors",
            },
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file({"model.norm.weight": NORM, **embedding}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("shards", [False, True])
def test_the_head_is_the_embedding_bit_for_bit(tmp_path: Path, shards: bool) -> None:
    model = make_model(tmp_path / "model", shards=shards)
    untied = untied_folder(model, tmp_path / "untied")
    assert (is_tied(model), is_tied(untied)) == (True, False)
    head = load_file(untied / "lm_head.safetensors")
    assert list(head) == ["lm_head.weight"]
    assert head["lm_head.weight"].dtype == torch.bfloat16
    assert torch.equal(head["lm_head.weight"], EMBEDDING)
    assert (untied / "tokenizer.json").read_text() == "{}"
    names = {file.name for file in untied.iterdir()}
    assert names == {file.name for file in model.iterdir()} | {"lm_head.safetensors"}


def test_an_index_names_the_head(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", shards=True)
    untied = untied_folder(model, tmp_path / "untied")
    index = json.loads((untied / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        "model.norm.weight": "model-1.safetensors",
        "model.embed_tokens.weight": "model-2.safetensors",
        "lm_head.weight": "lm_head.safetensors",
    }


def test_a_folder_is_written_anew(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    untied_folder(model, tmp_path / "untied")
    (tmp_path / "untied" / "old").write_text("")
    assert not (untied_folder(model, tmp_path / "untied") / "old").exists()
    assert is_tied(model)


def test_a_model_without_an_embedding_by_that_name_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    save_file({"gpt.wte": NORM}, model / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        untied_folder(model, tmp_path / "untied")
    assert str(caught.value) == (
        f"{model / 'model.safetensors'} holds no model.embed_tokens.weight: its LM head cannot be "
        "untied"
    )


@pytest.mark.parametrize(
    ("family", "tied", "untied"),
    [("llama", False, False), ("gemma2", True, False), ("gemma3", True, True)],
)
def test_the_familys_default_says_what_config_json_leaves_out(
    tmp_path: Path, family: str, tied: bool, untied: bool
) -> None:
    tiny_model(family).config.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert said.pop("tie_word_embeddings") == tied
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert (is_tied(tmp_path), needs_untying(tmp_path)) == (tied, untied)
