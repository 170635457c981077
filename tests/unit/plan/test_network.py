import json
from pathlib import Path

import pytest
from families import FAMILIES, tiny_model

from rnow.errors import ModelError
from rnow.learner.reach import lora_reach
from rnow.plan.network import check_network


def written(folder: Path, family: str, **sizes: object) -> Path:
    tiny_model(family, **sizes).config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_that_people_train_runs_in_this_process(family: str, tmp_path: Path) -> None:
    told = check_network("student", written(tmp_path, family), window=512, engine="local")
    assert told == (
        (
            "student is a mixture of experts: in the local engine its bits depend on what runs "
            "beside it, so a resumed run may differ from an uninterrupted one",
        )
        if family in ("qwen3-moe", "gpt-oss")
        else ()
    )


@pytest.mark.parametrize("engine", ["local", "vllm"])
def test_a_window_beyond_the_models_positions_is_refused(tmp_path: Path, engine: str) -> None:
    folder = written(tmp_path, "llama")
    with pytest.raises(ModelError) as caught:
        check_network("student", folder, window=513, engine=engine)
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
    assert check_network("student", folder, window=2048, engine="vllm") == ()
    with pytest.raises(ModelError, match="reads 2048 tokens at most"):
        check_network("student", folder, window=2049, engine="vllm")


def test_layers_that_the_local_engine_does_not_run_are_refused_there(tmp_path: Path) -> None:
    folder = written(tmp_path, "qwen3")
    config = json.loads((folder / "config.json").read_text())
    config["layer_types"] = ["linear_attention", "full_attention"]
    (folder / "config.json").write_text(json.dumps(config))
    assert check_network("student", folder, window=512, engine="vllm") == ()
    with pytest.raises(ModelError) as caught:
        check_network("student", folder, window=512, engine="local")
    assert str(caught.value) == (
        "student has layers of kind linear_attention; the local engine runs causal attention with "
        "or without a sliding window, set engine.kind to vllm"
    )


@pytest.mark.parametrize("family", ["bloom", "falcon", "gptj", "stablelm"])
def test_a_family_with_an_attention_of_its_own_is_refused_by_the_local_engine(
    tmp_path: Path, family: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    assert check_network("student", tmp_path, window=512, engine="vllm") == ()
    with pytest.raises(ModelError) as caught:
        check_network("student", tmp_path, window=512, engine="local")
    assert str(caught.value) == (
        f"student ({family}) has an attention of its own, in the place of which the local engine "
        "cannot put its; set engine.kind to vllm"
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "nonsense"}', "{}"])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as caught:
        check_network("student", tmp_path, window=512, engine="vllm")
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
