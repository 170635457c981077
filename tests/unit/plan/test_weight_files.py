import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rnow.errors import ModelError
from rnow.plan.weight_files import (
    check_quantization,
    check_weights,
    count_weight_bytes,
    linear_names,
)

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def write_model(folder: Path, *, dtype: str = "float32", **config: object) -> Path:
    """Write two parts of a model, with an index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"dtype": dtype, **config}))
    for name in ("a", "b"):
        save_file({name: np.ones((4, 8), np.float32)}, folder / f"{name}.safetensors")
    places = {"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check_weights(folder)
    return str(caught.value)


def test_a_whole_model_is_accepted(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    assert check_weights(folder).notices == ()
    assert count_weight_bytes(folder) == sum(
        (folder / f"{name}.safetensors").stat().st_size for name in "ab"
    )


def test_matrices_are_named_without_embeddings_and_head(tmp_path: Path) -> None:
    matrix, vector = np.ones((4, 8), np.float32), np.ones(4, np.float32)
    weights = {
        "model.embed_tokens.weight": matrix,
        "model.layers.0.self_attn.q_proj.weight": matrix,
        "model.layers.1.self_attn.q_proj.weight": matrix,
        "model.layers.1.self_attn.q_proj.bias": vector,
        "model.layers.1.mlp.down_proj.weight": matrix,
        "model.norm.weight": vector,
        "lm_head.weight": matrix,
    }
    save_file(weights, tmp_path / "model.safetensors")
    assert linear_names(tmp_path) == {"q_proj", "down_proj"}
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert linear_names(tmp_path) == frozenset()


def test_a_file_that_was_cut_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    file = folder / "b.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    message = refusal(folder)
    assert message.startswith(f"{file} is cut off or damaged (")
    assert message.endswith("); fetch it again")


def test_a_folder_with_an_adapter_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    assert refusal(folder).startswith(f"{folder} holds an adapter beside its weights or instead ")


@pytest.mark.parametrize("key", ["num_hidden_layers", "vocab_size", "hidden_size"])
def test_a_configuration_of_a_larger_network_is_refused(tmp_path: Path, key: str) -> None:
    sizes = {"num_hidden_layers": 2, "vocab_size": 16, "hidden_size": 8}
    folder = write_model(tmp_path / "model", **sizes | {key: 17})
    names = ("model.embed_tokens.weight", "model.layers.1.input.weight", "model.norm.weight")
    shapes = ((16, 8), (8, 8), (8,))
    save_file(
        {name: np.ones(shape, np.float32) for name, shape in zip(names, shapes, strict=True)},
        folder / "a.safetensors",
    )
    places = {"weight_map": dict.fromkeys(names, "a.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))
    assert refusal(folder) == (
        f"{folder}: config.json says {key} 17, and the weights are those of {sizes[key]}; "
        "take both from the same model"
    )
    (folder / "config.json").write_text(json.dumps({"dtype": "float32", **sizes}))
    assert check_weights(folder).notices == ()


@pytest.mark.parametrize("size", [0, 7, 20])
def test_a_header_that_was_cut_is_refused(tmp_path: Path, size: int) -> None:
    folder = write_model(tmp_path / "model")
    file = folder / "b.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert refusal(folder).startswith(f"{file} is cut off or damaged (")


@pytest.mark.parametrize("name", ["a.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize(
    "pointer",
    [POINTER, "/annex/objects/SHA256E-s123--4d7a.safetensors\n", "# xet version 0\nsize = 1\n"],
)
def test_a_pointer_of_version_control_is_no_file(tmp_path: Path, name: str, pointer: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / name).write_text(pointer)
    assert refusal(folder) == (
        f"{folder / name} is the pointer that version control left in the file's place, not the "
        f"file: git lfs pull in {folder}, or fetch it again"
    )


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "b.safetensors").unlink()
    assert refusal(folder) == (
        f"{folder} lacks b.safetensors, which its index names; fetch the model again"
    )
    assert count_weight_bytes(folder) is None


def test_a_link_to_nothing_is_a_missing_part(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "b.safetensors").unlink()
    (folder / "b.safetensors").symlink_to(tmp_path / "blobs" / "gone")
    assert refusal(folder).startswith(f"{folder} lacks b.safetensors, ")


def test_a_part_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    save_file({"c": np.ones(3, np.float32)}, folder / "b.safetensors")
    assert refusal(folder) == (
        f"{folder / 'b.safetensors'} lacks b, which the index says are in it; fetch the model again"
    )


def test_an_index_without_a_map_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text("{}")
    assert refusal(folder) == (
        f"{folder}/model.safetensors.index.json has no weight_map; fetch the model again"
    )


def test_a_pickle_that_was_cut_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and then nothing")
    assert refusal(tmp_path) == (
        f"{tmp_path}/pytorch_model.bin is cut off, or in a form of before torch 1.6; fetch it again"
    )


def test_a_folder_without_weights_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert refusal(tmp_path) == (f"{tmp_path} has no weights (*.safetensors or pytorch_model*.bin)")


def test_another_precision_than_the_configuration_says_is_said(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", dtype="bfloat16")
    assert check_weights(folder).notices == (
        f"{folder}: config.json says bfloat16, and the weights are in float32. They are loaded in "
        "model.dtype, whatever either says",
    )


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    save_file({"b": np.ones(3, np.int8)}, folder / "b.safetensors")
    assert refusal(folder) == (
        f"{folder} has weights in I8, and its config.json has no quantization_config that says how "
        "they are meant; take the model's own files"
    )


def test_a_quantized_student_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", quantization_config={"quant_method": "fp8"})
    check_quantization(folder, is_trained=False, is_served=False)
    with pytest.raises(ModelError) as caught:
        check_quantization(folder, is_trained=True, is_served=True)
    assert str(caught.value) == (
        f"{folder} has weights quantized by fp8, and a student is trained from weights that are "
        "not; take the model that it was made from"
    )


def test_a_quantized_teacher_needs_its_package(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", quantization_config={"quant_method": "hqq"})
    check_quantization(folder, is_trained=False, is_served=True)
    with pytest.raises(ModelError) as caught:
        check_quantization(folder, is_trained=False, is_served=False)
    assert str(caught.value) == (
        f"{folder} has weights quantized by hqq, and the package hqq that reads them is not "
        "installed here: pip install hqq, or take the model that is not quantized"
    )


def test_of_pickles_it_is_said_that_nobody_looked_into_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for number, more in ((1, "{file} is"), (2, "{file}, pytorch_model-2.bin are")):
        with zipfile.ZipFile(tmp_path / f"pytorch_model-{number}.bin", "w") as file:
            file.writestr("data.pkl", b"")
        assert check_weights(tmp_path).unseen == (
            f"{tmp_path}: {more.format(file='pytorch_model-1.bin')} whole, and what weights a "
            "pickle holds is seen when it is loaded, not before"
        )
