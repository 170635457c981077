"""No code of a model's folder runs, in any place where rnow loads a part of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import qwen3, tokenizer_folder

from rnow.chat.template import ChatTemplate
from rnow.engines.local.weights import load_model
from rnow.errors import ModelError
from rnow.learner.weights import export_merged, load_causal_lm
from rnow.plan.devices import Devices, check_models
from rnow.plan.model_files import find_model
from rnow.plan.own_code import own_code_of

CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
Path({ran!r}).touch()

class Config(PretrainedConfig):
    model_type = "mynet"

class Model(PreTrainedModel):
    config_class = Config

class Tokenizer(PreTrainedTokenizerFast): ...
"""


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def folder(tmp_path: Path, ran: Path) -> Path:
    """A whole model whose configuration, network and tokenizer are classes of its folder."""
    folder = tokenizer_folder(tmp_path / "model", "qwen3")
    qwen3().save_pretrained(folder)
    (folder / "own.py").write_text(CODE.format(ran=str(ran)))
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    change(folder / "config.json", model_type="mynet", auto_map=own)
    tokenizer = {"auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}}
    change(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", **tokenizer)
    return folder


LOADERS: dict[str, Callable[[Path], object]] = {
    "template": ChatTemplate.load,
    "learner": lambda folder: load_causal_lm(str(folder), torch.float32),
    "local engine": lambda folder: load_model(folder, dtype="float32", device="cpu"),
    "export": lambda folder: export_merged(
        str(folder), adapter_dir=folder, output_dir=folder / "out"
    ),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_folders_code_is_neither_run_nor_asked_about(
    folder: Path, ran: Path, loader: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError):
        LOADERS[loader](folder)
    assert not ran.exists()
    assert "[y/N]" not in "".join(capfd.readouterr())


def test_a_model_that_needs_its_own_code_is_told_before_anything_is_loaded(folder: Path) -> None:
    model = find_model("model.path", str(folder), project=folder)
    with pytest.raises(ModelError) as caught:
        check_models({model: "auto"}, devices=Devices(gpus=(), reason="no driver"))
    assert str(caught.value) == (
        f"{folder} cannot be loaded\n"
        f"  model.path: {folder} needs Python code of its own (auto_map in its config.json; its "
        "model_type 'mynet' is none that transformers knows), and rnow never runs a model "
        "folder's code; take a model that transformers knows by itself"
    )


def test_a_family_that_transformers_has_learnt_is_loaded_without_the_folders_code(
    folder: Path, ran: Path
) -> None:
    change(folder / "config.json", model_type="qwen3")
    change(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert own_code_of(folder) is None
    for loader in ("template", "learner", "local engine"):
        LOADERS[loader](folder)
    assert not ran.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model_type": "mynet"}'])
def test_a_folder_without_code_is_somebody_elses_to_judge(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert own_code_of(tmp_path) is None
    assert own_code_of(tmp_path / "none") is None
