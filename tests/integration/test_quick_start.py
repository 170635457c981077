"""The quick start as people type it: the converter alone, then the blocks of README."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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
