"""The repository's root is a project that `rnow run .` takes, and the medbrowsecomp template."""

import ast
import json
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from builders import medbrowse_grade, read_prompts

import rnow
from rnow.commands.init import init_project
from rnow.config.cautions import FEWEST_ROLLOUTS, long_generations
from rnow.config.load import load_config

ROOT = Path(__file__).parents[3]
TEMPLATE = Path(rnow.__file__).parent / "templates" / "medbrowsecomp"
FILES = ["config.yml", "convert_dataset.py", "rewards.py", "tools.py", "train.jsonl"]


def load_converter() -> ModuleType:
    spec = spec_from_file_location("convert_dataset", ROOT / "convert_dataset.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_init_writes_the_root_project_as_regular_files(tmp_path: Path) -> None:
    made = init_project(tmp_path, template="medbrowsecomp")
    assert sorted(file.name for file in made) == FILES
    assert not any(file.is_symlink() for file in made)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_packaged_template_holds_nothing_else() -> None:
    assert sorted(file.name for file in TEMPLATE.iterdir() if file.is_file()) == FILES


def test_config_says_what_the_reference_project_is() -> None:
    loaded = load_config(ROOT)
    config = loaded.config
    assert loaded.notices == ()
    assert config.teacher is not None
    assert config.dataset_type == "distill"
    assert (config.model.path, config.teacher.path) == ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B")
    assert config.algorithm.kl_penalty_coef == 0.1
    assert config.rollout.max_turns == 10
    assert config.rollout.max_context_window >= 16384
    assert config.rollout.tool_timeout == 120
    # Ten pages at their cap, and what is said between them, fit in the window.
    assert config.rollout.max_tool_response == 3000
    assert 10 * config.rollout.max_tool_response < config.rollout.max_context_window
    assert (config.data.batch_size, config.data.group_size) == (8, 8)
    assert (config.trainer.num_epochs, config.trainer.save_step) == (3, 50)
    assert config.browser.contact is None
    assert "clinicaltrials.gov" in config.browser.allow_hosts
    assert "*" not in config.browser.allow_hosts


def test_every_host_that_a_model_is_told_of_may_be_browsed() -> None:
    allowed = load_config(ROOT).config.browser.allow_hosts
    texts = [(ROOT / "tools.py").read_text(), load_converter().SYSTEM_PROMPT]
    hosts = {host for text in texts for host in re.findall(r"https://([\w.-]+)/", text)}
    assert hosts == {"clinicaltrials.gov", "www.accessdata.fda.gov"}
    assert hosts <= set(allowed)


def test_samples_are_read_and_are_in_the_converter_s_form() -> None:
    prompts = read_prompts(ROOT / "train.jsonl", tool_names=["browse"], batch_size=4).prompts
    assert len(prompts) == 8
    for prompt in prompts:
        assert [message["role"] for message in prompt.messages] == ["system", "user"]
        assert prompt.messages[0]["content"] == load_converter().SYSTEM_PROMPT
        assert sorted(prompt.metadata) == ["expected_answer", "split", "task_name"]


def test_samples_are_invented() -> None:
    text = (ROOT / "train.jsonl").read_text()
    # No real trial has a number that begins with 9.
    assert {trial[:4] for trial in re.findall(r"NCT\d{8}", text)} == {"NCT9"}
    assert {json.loads(line)["metadata"]["split"] for line in text.splitlines()} == {"invented"}


def test_each_sample_s_answer_is_correct_in_the_form_that_its_question_asks_for() -> None:
    for prompt in read_prompts(ROOT / "train.jsonl").prompts:
        task, expected = prompt.metadata["task_name"], prompt.metadata["expected_answer"]
        label = re.search(r"in the form (\w+): ", prompt.messages[-1]["content"])
        assert label is not None
        assert medbrowse_grade(task, expected, f"{label[1]}: {expected}").correct
        assert not medbrowse_grade(task, expected, f"{label[1]}: something else").correct


def test_the_tool_is_one_that_the_public_client_would_take() -> None:
    (function,) = (
        node
        for node in ast.parse((ROOT / "tools.py").read_text()).body
        if isinstance(node, ast.AsyncFunctionDef)
    )
    assert ast.unparse(function).startswith(
        "@tool\nasync def browse(url: str, page: int=1) -> str:\n"
    )
    docstring = ast.get_docstring(function)
    assert docstring is not None
    assert "page=2" in docstring


@pytest.mark.parametrize(
    "other", ["a client of that name", "no rnow at all", "ours without aiohttp"]
)
def test_tools_say_which_rnow_they_are_for(tmp_path: Path, other: str) -> None:
    package = tmp_path / "rnow"
    if other != "no rnow at all":
        (package / "core").mkdir(parents=True)
        (package / "core" / "__init__.py").write_text("def tool(function): return function\n")
        (package / "__init__.py").touch()
    if other == "ours without aiohttp":
        (package / "medbrowse").mkdir()
        (package / "medbrowse" / "__init__.py").write_text("import aiohttp\n")
    program = f"import sys; sys.path[:0] = {[str(tmp_path), str(ROOT)]!r}\nimport tools"
    command = [sys.executable, "-E", "-S", "-c", program]  # without site-packages
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    says = (
        "ImportError: tools.py needs the rnow of its repository (pip install -e "
        "FOLDER_OF_THE_REPOSITORY); the package index's rnow is another one, a hosted service's "
        "client\n"
    )
    if other == "ours without aiohttp":
        says = "ModuleNotFoundError: No module named 'aiohttp'\n"
    assert done.stderr.endswith(says)


def test_the_config_s_first_comment_says_which_rnow_it_is_for() -> None:
    assert (ROOT / "config.yml").read_text().partition("\n")[0] == (
        "# For the rnow of its repository; the package index's rnow is another one, a hosted "
        "service's client."
    )


def test_a_step_and_a_generation_of_the_reference_project_have_a_size() -> None:
    config = load_config(ROOT).config
    assert config.data.batch_size * config.data.group_size == FEWEST_ROLLOUTS == 64
    assert config.rollout.max_tokens == 8192
    assert long_generations(config) is None


def test_the_converter_is_importable_without_datasets() -> None:
    before = set(sys.modules)
    load_converter()
    assert not {"datasets", "torch"} & (set(sys.modules) - before)


def test_notice_has_the_sentence_that_crawl4ai_s_licence_asks_for() -> None:
    assert (
        "This product includes software developed by UncleCode (https://x.com/unclecode) as part "
        "of the Crawl4AI project (https://github.com/unclecode/crawl4ai)."
    ) in (ROOT / "NOTICE").read_text()
