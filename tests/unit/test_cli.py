import errno
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from processes import PATIENCE_S
from safetensors import SafetensorError

from rnow import cli
from rnow.commands.init import init_project

ROOT = Path(__file__).parents[2]

HEAVY = ("torch", "transformers", "peft", "crawl4ai", "datasets", "tokenizers", "aiohttp", "numpy")


def rnow(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rnow", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=cwd)


ROOT_COMMAND = typer.main.get_command(cli.app)


def commands_below(group: Any, *words: str) -> Iterator[tuple[str, Any]]:
    """Yield each command with the words that call it: "", "run", "corpus", "corpus build"."""
    yield " ".join(words), group
    for name, command in getattr(group, "commands", {}).items():
        if not command.hidden:
            yield from commands_below(command, *words, name)


COMMANDS = dict(commands_below(ROOT_COMMAND))


def example_of(command: Any) -> list[str]:
    """Return the words of the help's example; there is one in each."""
    (line,) = re.findall(r"^Example: (rnow .+)$", command.help, re.MULTILINE)
    return shlex.split(line)[1:]


@pytest.mark.parametrize("words", COMMANDS)
def test_help_imports_nothing_heavy(words: str) -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from rnow.cli import app\n"
        f"result = CliRunner().invoke(app, {[*words.split(), '--help']!r})\n"
        "assert result.exit_code == 0, result.output\n"
        f"print([name for name in {(*HEAVY, 'yaml', 'asyncio')!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("words", COMMANDS)
def test_all_that_can_be_typed_is_explained(words: str) -> None:
    command = COMMANDS[words]
    helps = {"the command": command.help} | {item.name: item.help for item in command.params}
    short = {name: text for name, text in helps.items() if len((text or "").split()) < 4}
    assert short == {}


@pytest.mark.parametrize("words", COMMANDS)
def test_no_line_of_a_commands_help_is_broken_by_a_terminal_of_80_columns(words: str) -> None:
    _, *lines = inspect.cleandoc(COMMANDS[words].help).splitlines()  # the first one flows
    assert [line for line in lines if len(line) > 78] == []


@pytest.mark.parametrize("words", COMMANDS)
def test_the_example_in_a_commands_help_can_be_typed(words: str) -> None:
    command: Any = ROOT_COMMAND
    context = command.make_context("rnow", example := example_of(COMMANDS[words]))
    assert example[: len(words.split())] == words.split()
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        context = command.make_context(name, rest, parent=context)


def test_help_that_is_piped_keeps_every_word() -> None:
    words = " ".join(re.sub(r"[^\w.=;:,'/-]+", " ", rnow("run", "--help").stdout).split())
    assert "The same as trainer.num_epochs=N; without it, what config.yml says." in words
    assert "docs/configuration.md lists all keys, each with its meaning." in words
    assert "…" not in words


def test_a_run_that_is_refused_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from rnow.cli import app\n"
        f"result = CliRunner().invoke(app, ['run', {str(ROOT)!r}])\n"
        "assert 'need GPUs, and none was found' in str(result.exception), result.output\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules and name != 'numpy'])\n"
    )
    environ = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environ
    )
    assert done.stdout == "[]\n", done.stderr


def test_help_shows_the_attribution_that_crawl4ai_asks_for() -> None:
    sentence = (
        "This product includes software developed by UncleCode (https://x.com/unclecode) as part "
        "of the Crawl4AI project (https://github.com/unclecode/crawl4ai)."
    )
    assert sentence in " ".join(rnow("--help").stdout.split())
    for name in ("NOTICE", "README.md"):
        assert sentence in " ".join((ROOT / name).read_text().split())


def test_the_version_is_shown() -> None:
    assert rnow("--version").stdout == "rnow 0.1.0\n"


def test_without_a_gpu_the_reference_project_names_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("config.yml", "train.jsonl", "tools.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    done = rnow("run", cwd=tmp_path)
    assert done.returncode == 1
    assert "Qwen/Qwen3-8B and Qwen/Qwen3-32B need GPUs" in done.stderr
    assert "rnow demo" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["run", "nowhere"],
            2,
            "nowhere is not a folder. To make a project there: rnow init nowhere",
        ),
        (["run", ".", "tests"], 2, "one project folder, please; got . and tests"),
    ],
)
def test_wrong_usage_is_one_message_and_a_code(words: list[str], code: int, message: str) -> None:
    done = rnow(*words, cwd=ROOT)
    assert done.returncode == code
    assert done.stderr == f"Error: {message}\n"
    assert done.stdout == ""


def test_a_misspelt_key_is_named_with_file_and_line(tmp_path: Path) -> None:
    text = (ROOT / "config.yml").read_text().replace("kl_penalty_coef", "kl_penalty_coeff")
    (tmp_path / "config.yml").write_text(text)
    line = 1 + text[: text.index("kl_penalty_coeff")].count("\n")
    done = rnow("run", tmp_path)
    assert done.returncode == 1
    assert (
        f"config.yml:{line}: algorithm.kl_penalty_coeff is not a setting; "
        "did you mean kl_penalty_coef?"
    ) in done.stderr
    assert "Traceback" not in done.stderr


def test_check_ends_with_one_line_of_json(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("dataset_type: distill\nsede: 1\n")
    done = rnow("check", tmp_path, "--json")
    assert done.returncode == 1
    problems = json.loads(done.stdout)["problems"]
    assert {"file", "line", "key", "message", "severity"} == problems[0].keys()
    assert "sede is not a setting; did you mean seed?" in " ".join(
        problem["message"] for problem in problems
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose config can be read, and nothing more."""
    (tmp_path / "config.yml").write_text(
        "data: {batch_size: 1}\nmodel: {path: a}\nteacher: {path: b}\ntrainer: {num_epochs: 1}\n"
    )
    return tmp_path


@pytest.mark.parametrize("name", ["", "..", "../other", "a/b"])
def test_a_run_stays_below_runs(project: Path, name: str) -> None:
    done = rnow("run", project, "--name", name)
    assert done.returncode == 2
    assert done.stderr == (
        f"Error: --name {name!r}: give the name of a folder under runs/, without a slash\n"
    )


@pytest.mark.parametrize("number", ["0", "-5"])
def test_an_evaluation_of_no_prompts_is_wrong_usage(project: Path, number: str) -> None:
    done = rnow("eval", project, "-n", number)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("template", ["clinic", "medbrowsecomp"])
def test_an_evaluation_without_held_out_prompts_names_what_writes_them(
    tmp_path: Path, template: str
) -> None:
    init_project(tmp_path, template=template)
    (tmp_path / "val.jsonl").unlink(missing_ok=True)
    script = "make_site.py" if template == "clinic" else "convert_dataset.py"
    assert (tmp_path / script).is_file()
    done = rnow("eval", tmp_path, "--model", "base")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: {tmp_path}/val.jsonl: file not found; cd {tmp_path} && python {script} writes it\n"
    )


def test_a_dry_run_shows_each_warning_once(project: Path) -> None:
    with (project / "config.yml").open("a") as config:
        config.write("project_id: abc\n")
    done = rnow("run", project, "--dry-run", "-e", 3)
    assert done.stderr == ""
    assert done.stdout.count("project_id is ignored") == 1
    assert done.stdout.count("trainer.num_epochs = 3 (was: 1)") == 1


def test_a_kind_of_training_that_is_not_built_is_named_with_its_line(project: Path) -> None:
    text = (project / "config.yml").read_text().replace("teacher: {path: b}", "dataset_type: sft")
    (project / "config.yml").write_text(text)
    done = rnow("run", project)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: {project}/config.yml:3: dataset_type sft is read and checked, but not trained in "
        "this version; only distill is. To train this project so: dataset_type: distill, and a "
        "teacher: {path: MODEL}\n"
    )


def test_what_the_machine_refuses_is_one_message(project: Path) -> None:
    (project / "runs").mkdir()
    done = rnow("run", project, "--name", "x" * 300)
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: {project}/runs/{'x' * 300}/state.json: File name too long; take a shorter name\n"
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/state.json"),
            "runs/a/state.json: No space left on device; "
            "free some space; a run goes on where it was with the same command",
        ),
        (
            SafetensorError("Error while serializing: I/O error: No space left (os error 28)"),
            "No space left on device; "
            "free some space; a run goes on where it was with the same command",
        ),
        (
            shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]),
            "No space left on device; "
            "free some space; a run goes on where it was with the same command",
        ),
        (
            FileExistsError(errno.EEXIST, "File exists", "runs"),
            "runs: File exists; a folder is to be made there: move away what is in its place",
        ),
        (OSError("some other error"), None),
        (ValueError("a bug"), None),
    ],
)
def test_a_full_disk_is_told_from_a_bug(error: Exception, text: str | None) -> None:
    assert cli._refusal(error) == text


def test_brackets_in_a_path_are_shown(tmp_path: Path) -> None:
    shown = rnow("init", "a[b]", cwd=tmp_path).stdout
    assert shown.splitlines()[-1] == "Next: cd a[b] && rnow check && rnow run"


def test_the_demo_leaves_another_project_alone(project: Path) -> None:
    done = rnow("demo", "--dir", project)
    assert done.returncode == 2
    assert done.stderr == (
        f"Error: {project} holds another project, without models/student; "
        "name a folder for the demo with --dir\n"
    )


@pytest.mark.parametrize(
    ("number", "line"),
    [(signal.SIGINT, "Stopped by Ctrl-C\n"), (signal.SIGTERM, "Stopped by SIGTERM\n")],
)
def test_a_check_that_is_stopped_says_so_and_leaves_nothing(
    project: Path, tmp_path: Path, number: signal.Signals, line: str
) -> None:
    started = tmp_path / "started"
    (project / "tools.py").write_text(
        f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(600)\n"
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "rnow", "check", project],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    deadline = time.monotonic() + PATIENCE_S
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    assert errors == line
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "check", "eval", "test"])
def test_the_folder_of_a_run_is_no_project_and_its_own_is_named(
    project: Path, command: str
) -> None:
    run = project / "runs" / "a run"
    run.mkdir(parents=True)
    shutil.copy(project / "config.yml", run)
    for name in ("state.json", "inputs.json"):
        (run / name).write_text("{}")
    done = rnow(command, run)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        f"Error: {run} is the folder of a run, whose project is {project}; to go on with that run: "
        f"rnow run {project} --name 'a run'"
    )
