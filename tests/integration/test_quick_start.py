"""The quick start as people type it: the converter alone, then the blocks of README."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from environments import make_environment

ROOT = Path(__file__).parents[2]
INGREDIENTS = ("VELORA", "DUXIMA", "KORELA", "MORO", "SANOVA", "ILARA", "OTUMA", "PEXA")


def make_rows() -> list[dict[str, Any]]:
    """Return two questions of each of eight trials, in the published columns."""
    rows = []
    for number, ingredient in enumerate(INGREDIENTS):
        trial = f"NCT{90000000 + number}"
        for task, gold in (("Ingredient", ingredient), ("Exclusivity_Date_prompt", None)):
            row = {"prompt": f"For trial {trial}: its {task}? “≥ 2”", "gold": gold}
            rows.append({**row, "task_name": task, "split": f"any-name of {number}"})
    return rows


def expected_line(row: dict[str, Any]) -> str:
    """Return the line of train.jsonl for a row; the system prompt is that of the samples."""
    sample = json.loads((ROOT / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    task = {"Ingredient": "ingredient", "Exclusivity_Date_prompt": "exclusivity_date"}
    entry = {
        "messages": [sample["messages"][0], {"role": "user", "content": row["prompt"]}],
        "tools": ["browse"],
        "metadata": {
            "expected_answer": row["gold"] or "NA",
            "task_name": task[row["task_name"]],
            "split": row["split"],
        },
    }
    return json.dumps(entry, ensure_ascii=False) + "\n"


def environ_without_this_rnow(**more: str) -> dict[str, str]:
    outside = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return outside | more


def test_the_converter_needs_datasets_and_nothing_else(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv", "datasets")
    environ = environ_without_this_rnow(HF_HOME=str(tmp_path))
    absent = "import importlib.util as u; print([n for n in ('rnow', 'torch') if u.find_spec(n)])"
    asked = subprocess.run([python, "-c", absent], capture_output=True, text=True, env=environ)
    assert (asked.stdout, asked.stderr) == ("[]\n", "")
    shutil.copyfile(ROOT / "convert_dataset.py", tmp_path / "convert_dataset.py")
    rows = make_rows()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("rows.parquet", "rows.jsonl"):
        command = [str(python), "convert_dataset.py", "--source", name]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environ)
        assert (done.returncode, done.stderr) == (0, "")
        train, val = (
            (tmp_path / f"{part}.jsonl").read_text(encoding="utf-8") for part in ("train", "val")
        )
        held_out = [row for row in rows if row["prompt"] in val]
        assert len(held_out) == 2  # one ingredient: 15 % of 16 rows are 2.4
        assert val == "".join(map(expected_line, held_out))
        assert train == "".join(expected_line(row) for row in rows if row not in held_out)
        (tmp_path / "train.jsonl").unlink()
        (tmp_path / "val.jsonl").unlink()


def test_without_datasets_the_converter_says_how_to_get_them(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv")
    command = [str(python), str(ROOT / "convert_dataset.py"), "--source", str(ROOT / "train.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, env=environ_without_this_rnow())
    assert (done.returncode, done.stderr) == (
        1,
        f"Error: {python} has no datasets; uv pip install datasets, or pip install datasets\n",
    )


README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = ("config.yml", "tools.py", "rewards.py", "train.jsonl", "convert_dataset.py")
UNTRACKED = shutil.ignore_patterns("__pycache__", "*.egg-info")
MODELS = ROOT / "src" / "rnow" / "templates" / "clinic" / "models"


def quick_start_of(command: str) -> list[str]:
    """Return the lines of README's block that begins with `command`."""
    (block,) = re.findall(rf"```bash setup\n({command}\n.*?)```", README, re.DOTALL)
    return str(block).splitlines()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The repository, as far as its project and its package go, beside a stand-in for the hub."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "src", folder / "src", symlinks=True, ignore=UNTRACKED)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", *PROJECT):
        shutil.copyfile(ROOT / name, folder / name)
    data = folder / "AIM-Harvard" / "MedBrowseComp" / "data"
    data.mkdir(parents=True)
    rows = pa.Table.from_pylist(make_rows())
    pq.write_table(rows, data / "MedBrowseComp_605-00000-of-00001.parquet")
    for model, stand_in in (("Qwen3-8B", "student"), ("Qwen3-32B", "teacher")):
        cached = tmp_path / "home" / "hub" / f"models--Qwen--{model}"
        shutil.copytree(MODELS / stand_in, cached / "snapshots" / "0")
        config_file = cached / "snapshots" / "0" / "config.json"
        config = json.loads(config_file.read_text()) | {"max_position_embeddings": 40960}
        config_file.write_text(json.dumps(config))  # as far as the real ones read
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("0")
    return folder


def run_as_typed(lines: list[str], *, folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a quick start without a network: what downloads would bring is taken from here.

    The packages are this environment's own, seen from the new one through a .pth file.
    """
    (home / "uv.toml").write_text(
        "offline = true\n[pip]\nno-deps = true\nno-build-isolation = true\n"
    )
    borrow = (
        "rm -rf .venv/lib/python*/site-packages/{setuptools*,pkg_resources,*distutils*}\n"
        f"echo {sysconfig.get_path('purelib')} > $(echo .venv/lib/python*/site-packages)/all.pth"
    )
    # Only while the environment is made: uv would install into the one that UV_PYTHON names.
    python = f"export UV_PYTHON={sys.executable}"
    script = ["set -e", python, lines[0], "unset UV_PYTHON", borrow, *lines[1:]]
    environ = environ_without_this_rnow(
        HF_HOME=str(home),
        HF_HUB_OFFLINE="1",
        CUDA_VISIBLE_DEVICES="",
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        UV_CONFIG_FILE=str(home / "uv.toml"),
        PIP_NO_INDEX="1",
        PIP_NO_DEPS="1",
        PIP_NO_BUILD_ISOLATION="false",
    )
    return subprocess.run(
        ["bash", "-c", "\n".join(script)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.slow
@pytest.mark.parametrize("first", ["uv venv", "python3 -m venv .venv"])
def test_the_quick_start_runs_word_for_word(clone: Path, tmp_path: Path, first: str) -> None:
    *lines, run = quick_start_of(first)
    downloads = [line for line in lines if re.search(r"vllm|playwright", line)]
    assert len(downloads) == 3
    lines = [line for line in lines if line not in downloads]
    assert [line.split("#")[0].strip() for line in lines[1:]] == [
        "source .venv/bin/activate",
        f"{'uv ' if first == 'uv venv' else ''}pip install -e .",
        "python convert_dataset.py",
    ]
    # The first run asks who is reading the sites; here nobody answers.
    done = run_as_typed([*lines, run], folder=clone, home=tmp_path / "home")
    assert "Done! 14 rows to train on, 2 held out\n" in done.stdout
    assert done.returncode == 1
    line = 1 + (clone / "config.yml").read_text().partition("contact: null")[0].count("\n")
    assert f"Error: config.yml:{line}: browser.contact is null: " in done.stderr
    if first != "uv venv":  # what follows is the same
        return
    settings = (clone / "config.yml").read_text()
    for written, now in (
        ("contact: null", "contact: me@lab.test"),
        # What the models that stand in have room for, and one step of theirs.
        ("max_context_window: 32768", "max_context_window: 2048"),
        ("max_tool_response: 3000", "max_tool_response: 300"),
        ("num_epochs: 3", "num_epochs: 3\n  max_steps: 1"),
    ):
        assert settings.count(written) == 1
        settings = settings.replace(written, now)
    (clone / "config.yml").write_text(settings)
    done = run_as_typed(["source .venv/bin/activate", run], folder=clone, home=tmp_path / "home")
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "done: the model is in runs/clone/model"


CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def make_index(folder: Path, version: str) -> str:
    """Make an index that has one torch, an empty one; return its URL."""
    wheel = folder / f"torch-{version}-py3-none-any.whl"
    info = f"torch-{version}.dist-info"
    (folder / "torch").mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as parts:
        parts.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
        )
        parts.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        parts.writestr(f"{info}/RECORD", "")
    link = f'<a href="../{quote(wheel.name)}">{wheel.name}</a>'
    (folder / "torch" / "index.html").write_text(link)
    return folder.as_uri()


@pytest.mark.parametrize(
    ("extras", "chosen"), [((), "torch==2.14.0"), (("--extra", "cpu"), "torch==2.14.0+cpu")]
)
def test_uv_takes_torch_without_cuda_for_the_extra_cpu_alone(
    tmp_path: Path, extras: tuple[str, ...], chosen: str
) -> None:
    # Of what rnow requires, torch alone: the other packages are no index's matter here.
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert text.count(CPU_INDEX) == 1
    text = text.replace(CPU_INDEX, make_index(tmp_path / "cpu", "2.14.0+cpu"))
    text = re.sub(r'^    "(?!torch)[^"]*",\n', "", text, flags=re.MULTILINE)
    assert re.findall(r"^dependencies = (.*?^])", text, re.MULTILINE | re.DOTALL) == [
        '[\n    "torch>=2.13,<2.15",\n]'
    ]
    (tmp_path / "pyproject.toml").write_text(text)
    plain = make_index(tmp_path / "plain", "2.14.0")
    command = [Path(sys.executable).parent / "uv", "pip", "compile", "-q", "--no-annotate"]
    command += ["--no-header", "--default-index", plain, "pyproject.toml", *extras]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environ_without_this_rnow(UV_PYTHON=sys.executable),
    )
    assert (done.stdout, done.stderr) == (f"{chosen}\n", "")


def test_readme_names_the_extra_and_the_index() -> None:
    assert f"uv pip install -e '.[cpu]'\npip install --extra-index-url {CPU_INDEX} -e .\n" in README
