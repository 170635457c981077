import json
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, tiny_model
from transformers import StableLmConfig

from rnow.errors import ModelError
from rnow.learner.reach import lora_reach
from rnow.plan.network import Use, check_network
from rnow.plan.records import EngineKind


def use(window: int = 512, engine: EngineKind = "vllm", **fields: Any) -> Use:
    return Use(window=window, engine=engine, **{"device": "cpu", **fields})


def written(folder: Path, family: str, **sizes: object) -> Path:
    tiny_model(family, **sizes).config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_that_people_train_runs_in_this_process(family: str, tmp_path: Path) -> None:
    told = check_network("student", written(tmp_path, family), use(512, "local"))
    assert told == (
        (
            "student is a mixture of experts: in the local engine its bits depend on what runs "
            "beside it, so a resumed run may differ from an uninterrupted one",
        )
        if family in ("qwen3-moe", "gpt-oss")
        else ()
    )


@pytest.mark.parametrize("engine", ["local", "vllm"])
def test_a_window_beyond_the_models_positions_is_refused(
    tmp_path: Path, engine: EngineKind
) -> None:
    folder = written(tmp_path, "llama")
    with pytest.raises(ModelError) as caught:
        check_network("student", folder, use(513, engine))
    assert str(caught.value) == (
        "rollout.max_context_window is 513, and student reads 512 tokens at most; set "
        "rollout.max_context_window to 512 or less"
    )


def test_positions_that_are_stretched_count_as_such(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    folder = written(
        tmp_path,
        "llama",
        rope_parameters={**yarn, "original_max_position_embeddings": 512},
    )
    assert check_network("student", folder, use(2048, "local")) == ()
    with pytest.raises(ModelError, match="reads 2048 tokens at most"):
        check_network("student", folder, use(2049, "local"))
    with pytest.raises(ModelError) as caught:
        check_network("student", folder, use(513, "vllm"))
    assert str(caught.value) == (
        "rollout.max_context_window is 513, and student reads 512 tokens at most; set "
        "rollout.max_context_window to 512 or less, or max_position_embeddings in its config.json "
        "to 2048"
    )
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    assert check_network("student", folder, use(2048, "vllm")) == ()


def test_vllm_scores_texts_that_leave_room_for_one_token(tmp_path: Path) -> None:
    folder = written(tmp_path, "llama")
    assert check_network("teacher", folder, use(512, "local", is_scored=True)) == ()
    assert check_network("teacher", folder, use(511, is_scored=True)) == ()
    with pytest.raises(ModelError) as caught:
        check_network("teacher", folder, use(512, is_scored=True))
    assert str(caught.value) == (
        "rollout.max_context_window is 512, and teacher reads 512 tokens at most (vLLM scores a "
        "text with one token of room behind it); set rollout.max_context_window to 511 or less"
    )


def test_that_token_does_not_change_a_teachers_positions(tmp_path: Path) -> None:
    longrope = {"rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [4.0] * 4}
    longrope |= {"short_factor": [1.0] * 4, "original_max_position_embeddings": 128}
    folder = written(
        tmp_path, "phi3", rope_parameters=longrope, original_max_position_embeddings=128
    )
    for window in (127, 129, 511):
        assert check_network("teacher", folder, use(window, is_scored=True)) == ()
    assert check_network("student", folder, use(128)) == ()
    with pytest.raises(ModelError) as caught:
        check_network("teacher", folder, use(128, is_scored=True))
    assert str(caught.value) == (
        "rollout.max_context_window is 128, and behind that teacher has other positions (vLLM "
        "scores a text with one token of room behind it); set rollout.max_context_window to 127 or "
        "less, or above 128"
    )


@pytest.mark.parametrize("engine", ["vllm", "url"])
def test_adapters_whose_layers_are_others_in_vllm_are_refused(
    tmp_path: Path, engine: EngineKind
) -> None:
    folder = written(tmp_path, "glm4")
    assert check_network("student", folder, use(512, "local", is_adapted=True)) == ()
    assert check_network("student", folder, use(512, engine)) == ()
    with pytest.raises(ModelError) as caught:
        check_network("student", folder, use(512, engine, is_adapted=True))
    assert str(caught.value) == (
        "vLLM serves no adapters of student: in an adapter of glm4 gate and up are one layer, in "
        "vLLM they are two; set engine.kind to local, or model.tuning to full"
    )


def test_adapters_of_a_kind_that_takes_none_in_vllm_are_refused(tmp_path: Path) -> None:
    StableLmConfig().save_pretrained(tmp_path)
    assert check_network("student", tmp_path, use(is_trained=True)) == ()
    with pytest.raises(ModelError) as caught:
        check_network("student", tmp_path, use(is_adapted=True))
    assert str(caught.value) == (
        "vLLM serves no adapters of student: its stablelm takes none; set engine.kind to local, or "
        "model.tuning to full"
    )


@pytest.mark.parametrize("family", ["qwen3-moe", "gpt-oss"])
@pytest.mark.parametrize(
    ("is_adapted", "lacks"), [(True, "serves no adapters"), (False, "takes no new weights")]
)
def test_a_mixture_is_not_trained_where_vllm_is_on_a_cpu(
    tmp_path: Path, family: str, is_adapted: bool, lacks: str
) -> None:
    folder = written(tmp_path, family)
    trained = {"is_trained": True, "is_adapted": is_adapted}
    assert check_network("student", folder, use(**trained, device="cuda")) == ()
    assert check_network("student", folder, use(engine="url", **trained)) == ()
    assert check_network("teacher", folder, use(511, is_scored=True)) == ()
    with pytest.raises(ModelError) as caught:
        check_network("student", folder, use(**trained))
    assert str(caught.value) == (
        f"vLLM on a CPU {lacks} of student, a mixture of experts; set engine.kind to local"
    )


def test_layers_that_the_local_engine_does_not_run_are_refused_there(tmp_path: Path) -> None:
    folder = written(tmp_path, "qwen3")
    config = json.loads((folder / "config.json").read_text())
    config["layer_types"] = ["linear_attention", "full_attention"]
    (folder / "config.json").write_text(json.dumps(config))
    assert check_network("student", folder, use(512, "vllm")) == ()
    with pytest.raises(ModelError) as caught:
        check_network("student", folder, use(512, "local"))
    assert str(caught.value) == (
        "student has layers of kind linear_attention; the local engine runs causal attention with "
        "or without a sliding window, set engine.kind to vllm"
    )


@pytest.mark.parametrize("family", ["bloom", "falcon", "gptj", "stablelm"])
def test_a_family_with_an_attention_of_its_own_is_refused_by_the_local_engine(
    tmp_path: Path, family: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(ModelError) as caught:
        check_network("student", tmp_path, use(512, "local"))
    assert str(caught.value) == (
        f"student ({family}) has an attention of its own, in the place of which the local engine "
        "cannot put its; set engine.kind to vllm"
    )


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"model_type": "llama", "layer_types": ["new"], "num_hidden_layers": 1}',
        '{"model_type": "nonsense"}',
        "{}",
    ],
)
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        check_network("student", tmp_path, use(512, "vllm"))
    assert str(caught.value).startswith(f"{tmp_path}/config.json cannot be read: ")


def test_a_dense_student_is_adapted_but_for_its_tables(tmp_path: Path) -> None:
    reach = lora_reach(written(tmp_path, "llama"))
    model = tiny_model("llama")
    assert reach.num_all == sum(parameter.numel() for parameter in model.parameters())
    assert (reach.num_experts, reach.num_tables) == (0, 2 * 128 * 32)
    assert reach.line() == (
        "LoRA adapts 65% of the student's 23.7 k weights: all linear layers but the LM head"
    )


@pytest.mark.parametrize("family", ["qwen3-moe", "gpt-oss"])
def test_experts_are_said_to_be_left_out(tmp_path: Path, family: str) -> None:
    reach = lora_reach(written(tmp_path, family))
    experts = sum(
        parameter.numel()
        for name, parameter in tiny_model(family).named_parameters()
        if ".experts." in name and parameter.dim() == 3
    )
    assert reach.num_experts == experts > 0
    assert reach.line().endswith(
        f"its experts are {experts / reach.num_all:.0%}, and no adapter reaches them; to train "
        "them, set model.tuning to full"
    )


def test_numbers_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text()) | {"pad_token_id": 4000}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        lora_reach(folder)
    assert str(caught.value) == (
        f"{folder}/config.json: no network can be made of it: Padding_idx must be within "
        "num_embeddings"
    )
