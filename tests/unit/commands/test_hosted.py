"""The public client's command line, as its users type it: nothing of it is wrong usage."""

import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from processes import PATIENCE_S
from rich.console import Console

from rnow.commands.hosted import nearest_template
from rnow.errors import RnowError

Run = Callable[..., subprocess.CompletedProcess[str]]

CONFIG = "data: {batch_size: 16}\nmodel: {path: a}\nteacher: {path: b}\ntrainer: {num_epochs: 1}\n"


@pytest.fixture
def rnow(tmp_path: Path) -> Run:
    """Run `rnow` in tmp_path; give exit code, stdout and stderr."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rnow", *map(str, words)]
        environ = os.environ | {"HF_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path, env=environ
        )

    return run


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("login -f", "runs are local: there is nothing to log in to. Start with: rnow run"),
        ("login --force", "runs are local: there is nothing to log in to. Start with: rnow run"),
        ("logout", "runs are local: there is nothing to log out of"),
        ("orgs", "runs are local: there are no organizations"),
        ("orgs org_123", "runs are local: there are no organizations"),
    ],
)
def test_what_has_nothing_to_do_here_says_so_and_succeeds(
    rnow: Run, words: str, sentence: str
) -> None:
    done = rnow(*words.split())
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sentence}\n", "")


def test_what_is_ignored_before_a_command_is_told_beside_its_output(rnow: Run) -> None:
    done = rnow("--debug", "--api-url", "http://x.test", "orgs")
    assert (done.returncode, done.stdout) == (0, "runs are local: there are no organizations\n")
    assert done.stderr.splitlines() == [
        "--debug is ignored: logs/controller.log in a run's folder has all of it",
        "--api-url is ignored: runs are local",
    ]


@pytest.mark.parametrize(
    ("words", "model", "command"),
    [
        ("download", "NAME", "rnow export NAME"),
        ("download abc", "abc", "rnow export abc"),
        ("download abc -o out --keep-archive", "abc", "rnow export abc -o out"),
    ],
)
def test_a_download_names_the_folder_and_the_command(
    rnow: Run, words: str, model: str, command: str
) -> None:
    done = rnow(*words.split())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: runs are local, and so are models: runs/{model}/model. To copy one: {command}\n"
    )


def test_init_makes_the_project_here_and_asks_nothing(rnow: Run, tmp_path: Path) -> None:
    done = rnow("init", "-t", "medbrowsecomp", "-n", 'my: "run"', "-y", "-d", "some_dataset")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "--dataset is ignored: the prompts are the file data.train_file",
        "Made 5 files in .: config.yml, convert_dataset.py, rewards.py, tools.py, train.jsonl",
        "Next: rnow check && rnow run",
    ]
    text = (tmp_path / "config.yml").read_text()
    assert text.endswith('\nproject_name: "my: \\"run\\""\n')
    checked = rnow("check", "--json")
    assert "project_name" not in checked.stdout  # it is read, without a word


def test_a_name_is_not_written_into_a_config_that_was_there(rnow: Run, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(CONFIG)
    done = rnow("init", "--name", "mine", "--yes")
    assert done.returncode == 0
    assert "--name: config.yml was there already; set project_name in it yourself" in done.stdout
    assert (tmp_path / "config.yml").read_text() == CONFIG


@pytest.mark.parametrize(
    ("template", "nearest"),
    [
        *[(name, "clinic") for name in ("start", "new", "blank", "first-rl", "tutorial-tool")],
        ("on-distill-agent", "medbrowsecomp"),
        ("off-distill-agent", "medbrowsecomp"),
        ("rl-browser", "medbrowsecomp"),
        ("web-tasks", "medbrowsecomp"),
    ],
)
def test_its_templates_are_the_nearest_of_ours(template: str, nearest: str) -> None:
    console = Console(file=StringIO(), width=200)
    assert nearest_template(template, console) == nearest
    assert console.file.getvalue() == (
        f"{template} is a template of the public client's; the nearest here is {nearest}\n"
    )


FAR = """
sft midtrain posttrain rl-single rl-nextjs rl-tools kernel mcp-tavily deepseek-aha finqa convfinqa
quantqa adaptllm-finance food-extract tutorial-reward skyrl-sql
"""


@pytest.mark.parametrize("template", FAR.split())
def test_a_template_that_nothing_here_is_like_is_one_sentence(template: str) -> None:
    with pytest.raises(RnowError) as caught:
        nearest_template(template, Console(file=StringIO()))
    assert caught.value.exit_code == 1
    assert str(caught.value) == (
        f"{template} is a template of the public client's, and none is like it here; rnow init -t "
        "clinic makes a small project that trains, to put your own files in"
    )


def test_templates_by_their_names_there_on_the_command_line(rnow: Run, tmp_path: Path) -> None:
    done = rnow("init", "--template", "on-distill-agent")
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].startswith("Made 5 files in .: ")
    done = rnow("init", "other", "--template", "kernel")
    assert (done.returncode, done.stdout) == (1, "")
    assert not (tmp_path / "other").exists()


def test_run_takes_debug(rnow: Run, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(CONFIG)
    done = rnow(
        "run", "--debug", "-d", ".", "-n", "x", "-m", "c", "-e", 2, "-b", 16, "--lr", "1e-5"
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == [
        "--debug is ignored: logs/controller.log in a run's folder has all of it",
        "model.path = 'c' (was: 'a')",
    ]


def test_eval_takes_the_settings_of_rollouts_and_ignores_what_is_of_the_service(
    rnow: Run, tmp_path: Path
) -> None:
    (tmp_path / "config.yml").write_text(CONFIG)
    done = rnow(
        *("eval", "-d", ".", "--max-turns", 3, "--max-context-window", 4096),
        *("--termination-policy", "max_turns", "--max-tool-response", 500),
        *("--reasoning-mode", "none", "--project-id", "p", "--eval-id", "e", "--max-billing", 2),
        *("--pass4", "--pass1-temp", "0.2", "-n", 5, "--model", "base", "rollout.max_turns=4"),
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "--project-id is ignored: runs are local",
        "--eval-id is ignored: runs are local",
        "--max-billing is ignored: runs are local and cost nothing",
        "rollout.max_turns = 3 (was: not set)",
        "rollout.max_context_window = 4096 (was: not set)",
        "rollout.termination_policy = 'max_turns' (was: not set)",
        "rollout.max_tool_response = 500 (was: not set)",
        "rollout.reasoning_mode = 'none' (was: not set)",
        "rollout.max_turns = 4 (was: 3)",
    ]


HOLDER = """
import signal, sys, threading
from pathlib import Path
from rnow.runs.folder import RunDirectory
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
run = RunDirectory(Path("runs/mine"))
run.open()
run.write_state(step=3, num_steps=9, finished=False)
print("open", flush=True)
asked.wait()
run.close()
"""


def test_stop_takes_a_runs_name(rnow: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()  # a folder of that name which is no run
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        done = rnow("stop", "mine", "-y", "--save-model")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"asked process {holder.pid} to stop: an update in progress ends and is saved first",
        "runs/mine: not running; 3 of 9 steps are saved. To go on: rnow run . --name mine",
    ]
    assert holder.returncode == 0


def test_stop_of_what_is_no_run_says_where_to_look(rnow: Run) -> None:
    done = rnow("stop", "clr8k2", "-y")
    assert done.stderr == "Error: clr8k2 is not a run's folder; to see them: rnow status\n"
