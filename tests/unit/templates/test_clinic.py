"""The offline project: its pages and questions, and the two models that it ships."""

import json
from pathlib import Path

import pytest
from builders import medbrowse_grade, page_text

from rnow.commands.init import init_project
from rnow.config.load import load_config
from rnow.templates.clinic import make_site

TEMPLATE = Path(make_site.__file__).parent
MODELS = TEMPLATE / "models"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clinic")
    make_site.make_project_data(folder, seed=0)
    return folder


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _files(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def _page(project: Path, url: str) -> str:
    path = url.removeprefix(make_site.HOST + "/")
    return page_text((project / "site" / f"{path}.html").read_text(), url=url)


def test_same_seed_gives_the_same_bytes_and_another_seed_others(project, tmp_path):
    make_site.make_project_data(tmp_path / "again", seed=0)
    make_site.make_project_data(tmp_path / "other", seed=1)
    assert _files(tmp_path / "again") == _files(project)
    assert _files(tmp_path / "other").keys() != _files(project).keys()


def test_train_and_held_out_share_no_trial_and_no_name():
    def names(trials):
        return {
            name
            for trial in trials
            for name in (
                trial.nct,
                trial.ingredient,
                trial.comparator,
                trial.sponsor.split()[0],
                trial.company.split()[0],
            )
        }

    train, val = make_site.make_world(0)
    assert names(train).isdisjoint(names(val))
    assert len(names(train)) == 5 * len(train)


def test_each_trial_is_asked_about_in_three_forms(project):
    for file, num_trials in (("train.jsonl", 96), ("val.jsonl", 128)):
        tasks = [line["metadata"]["task_name"] for line in _lines(project / file)]
        assert {task: tasks.count(task) for task in set(tasks)} == {
            "ingredient": num_trials,
            "company": num_trials,
            "date": num_trials,
        }


def test_a_question_names_the_trial_the_tool_and_the_label_of_its_answer(project):
    for line in _lines(project / "val.jsonl"):
        metadata = line["metadata"]
        asked = line["messages"][-1]["content"]
        assert line["tools"] == ["browse"]
        assert metadata["nct"] in asked
        assert f"{metadata['task_name'].upper()}: " in asked


def test_every_answer_stands_on_the_page_that_one_or_two_hops_lead_to(project):
    for trial in make_site.make_world(0)[1]:
        study = _page(project, trial.study_url)
        assert f"  * {trial.answer('ingredient')}\n" in study
        assert trial.company not in study
        assert trial.patent_date not in study
        drug = _page(project, f"{make_site.HOST}/drug/{trial.ingredient}")
        assert f"  * {trial.answer('company')}\n" in drug
        assert f"  * {trial.answer('date')} (patent)" in drug


def test_the_right_answer_is_graded_right_and_the_misleading_fact_wrong(project):
    for trial in make_site.make_world(0)[1]:
        misleading = {
            "ingredient": trial.comparator,
            "company": trial.sponsor,
            "date": trial.completed,
        }
        for task, wrong in misleading.items():
            assert medbrowse_grade(task, trial.value(task), trial.answer(task)).correct
            assert not medbrowse_grade(task, trial.value(task), f"{task.upper()}: {wrong}").correct


def test_a_page_is_what_the_models_were_trained_on():
    trial = make_site.make_world(0)[0][0]
    assert page_text(make_site.study_html(trial), url=trial.study_url) == (
        f"{trial.study_url} (status 200, page 1 of 1)\n\n"
        f"# {trial.nct}\n"
        f"A trial in adults with {trial.condition}.\n"
        f"  * PHASE: {trial.phase}\n"
        f"  * SPONSOR: {trial.sponsor}\n"
        f"  * INGREDIENT: {trial.ingredient}\n"
        f"  * COMPARATOR: {trial.comparator}\n"
        f"  * COMPLETED: {trial.completed}"
    )


def test_init_makes_a_project_whose_config_loads(tmp_path):
    init_project(tmp_path / "clinic", template="clinic")
    loaded = load_config(tmp_path / "clinic")
    assert loaded.notices == ()
    assert loaded.config.browser.local_sites == {"clinic.test": "site/"}
    assert (tmp_path / "clinic" / "models" / "student" / "model.safetensors").is_file()
    assert len(list((tmp_path / "clinic" / "site").rglob("*.html"))) == 2 * (96 + 128)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_shipped_model_is_a_small_qwen3_that_vllm_can_serve(name):
    config = json.loads((MODELS / name / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["head_dim"] == 32
    assert config["num_attention_heads"] == 2 * config["num_key_value_heads"]
    assert config["tie_word_embeddings"] is True
    assert (MODELS / name / "model.safetensors").stat().st_size <= 4_000_000


def test_teacher_and_student_have_the_same_tokenizer_and_chat_template():
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (MODELS / "teacher" / file).read_bytes() == (MODELS / "student" / file).read_bytes()


def test_the_chat_template_and_the_added_tokens_are_those_of_qwen3():
    import trl

    templates = Path(trl.__file__).parent / "chat_templates"
    ours = (MODELS / "student" / "chat_template.jinja").read_text()
    assert ours == (templates / "qwen3.jinja").read_text()
    tokenizer = json.loads((MODELS / "student" / "tokenizer.json").read_text())
    assert {token["content"]: token["special"] for token in tokenizer["added_tokens"]} == {
        "<|endoftext|>": True,
        "<|im_start|>": True,
        "<|im_end|>": True,
        "<tool_call>": False,
        "</tool_call>": False,
        "<tool_response>": False,
        "</tool_response>": False,
        "<think>": False,
        "</think>": False,
    }


def test_a_name_is_the_same_tokens_in_a_question_a_url_a_page_and_an_answer():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODELS / "student" / "tokenizer.json"))
    letters = [tokenizer.token_to_id(letter) for letter in "VELORA"]
    for text in ("VELORA", '"https://clinic.test/drug/VELORA"}}', "# VELORA\n", "DRUG: VELORA\n"):
        ids = tokenizer.encode(text).ids
        assert any(ids[i : i + 6] == letters for i in range(len(ids))), text
