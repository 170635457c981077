import json
from pathlib import Path

import pytest
from builders import real_template, template_folder, tokenizer_folder

from rnow.chat.template import ChatTemplate
from rnow.chat.tokenizer_files import eos_ids_of
from rnow.errors import ModelError

TOLD = "rollouts stop at each, and the trained model's generation_config.json names all"


def shown(chat: ChatTemplate) -> list[str]:
    return [chat.decode([id]) for id in chat.ends.ids]


def call_an_end(folder: Path, *texts: str) -> None:
    ids = {token["content"]: token["id"] for token in added_tokens(folder)}
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [ids[text] for text in texts]})
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": texts[0]}))


def added_tokens(folder: Path) -> list[dict[str, str]]:
    tokens: list[dict[str, str]] = json.loads((folder / "tokenizer.json").read_text())[
        "added_tokens"
    ]
    return tokens


def test_the_end_of_turn_comes_first(tmp_path: Path) -> None:
    chat = ChatTemplate.load(tokenizer_folder(tmp_path, "llama3.1"))
    assert shown(chat)[0] == "<|eot_id|>"
    assert set(shown(chat)) == {"<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"}
    assert sorted(chat.ends.ids) == list(chat.stop_token_ids)
    assert chat.ends.notices(chat.name, chat.decode) == ()


def test_a_base_model_stops_at_its_templates_end_too_and_that_is_said(tmp_path: Path) -> None:
    call_an_end(tokenizer_folder(tmp_path, "qwen3"), "<|endoftext|>")
    chat = ChatTemplate.load(tmp_path)
    assert shown(chat) == ["<|im_end|>", "<|endoftext|>"]
    assert chat.ends.notices(chat.name, chat.decode) == (
        f"the chat template of {tmp_path} ends a turn with <|im_end|>, and the model's files call "
        f"<|endoftext|> an end: {TOLD}",
    )


def test_where_the_teacher_ends_a_text_the_student_stops(tmp_path: Path) -> None:
    student, teacher = (tokenizer_folder(tmp_path / name, "qwen3") for name in ("s", "t"))
    call_an_end(student, "<|im_end|>")
    call_an_end(teacher, "<|im_end|>", "<|vision_pad|>")
    chat = ChatTemplate.load(student, teacher=teacher)
    assert shown(chat) == ["<|im_end|>", "<|vision_pad|>"]
    assert chat.ends.notices(chat.name, chat.decode) == (
        f"the teacher's files call <|vision_pad|> an end, the student's do not: {TOLD}",
    )


@pytest.mark.parametrize("id", [-1, 2**31])
def test_an_end_that_is_no_token_is_refused(tmp_path: Path, id: int) -> None:
    folder = tokenizer_folder(tmp_path, "qwen3")
    file = folder / "generation_config.json"
    (end, *_) = eos_ids_of(folder)
    file.write_text(json.dumps({"eos_token_id": [end, id]}))
    num_tokens = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) + len(
        added_tokens(folder)
    )
    with pytest.raises(ModelError) as caught:
        ChatTemplate.load(folder)
    assert str(caught.value) == (
        f"{file}: eos_token_id has {id}, and the tokenizer beside it has {num_tokens} tokens and "
        "none of that id; take both from the same model, or take the id out"
    )


def test_a_models_ends_are_read_from_both_files(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, "qwen3")
    both = eos_ids_of(folder)
    (folder / "generation_config.json").unlink()
    (one,) = eos_ids_of(folder)
    assert both > {one}


@pytest.mark.parametrize(
    ("template", "eos", "end"),
    [
        ("gptoss", "<|return|>", "<|return|>"),  # <|end|> ends a message, and the turn goes on
        ("glm4moe", "<|endoftext|>", "<|user|>"),  # nothing but who speaks next ends a turn
        ("cohere2", "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),  # two tokens: the eos
        ("phi3", "<|endoftext|>", "<|end|>"),  # an eos stands behind it at the very end alone
        ("gemma", "<end_of_turn>", "<end_of_turn>"),
        ("muse_glimmer", "<|eot|>", "<|eot|>"),
    ],
)
def test_the_end_of_an_answer_is_found(tmp_path: Path, template: str, eos: str, end: str) -> None:
    folder = template_folder(tmp_path, real_template(f"{template}.jinja"), eos=eos)
    chat = ChatTemplate.load(folder)
    assert chat.decode([chat.end_of_turn_id]) == end


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("gptoss", ["<|return|>", "<|call|>"]),
        ("glm4moe", ["<|endoftext|>", "<|observation|>", "<|user|>"]),
        ("gemma4_v5", ["<turn|>", "<|tool_response>"]),
        ("llama3_1", ["<|eot_id|>", "<|eom_id|>"]),
        ("qwen3_5_think", ["<|im_end|>"]),
    ],
)
def test_a_turn_with_calls_has_its_own_end(tmp_path: Path, template: str, ends: list[str]) -> None:
    source = real_template(f"{template}.jinja")
    chat = ChatTemplate.load(template_folder(tmp_path, source, eos=ends[0]))
    assert set(shown(chat)) == set(ends)
