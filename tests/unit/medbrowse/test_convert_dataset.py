"""The converter on an invented dataset in the published columns, read by `datasets`, no network."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rnow.medbrowse.answer_values import normalize_ingredient

ROOT = Path(__file__).parents[3]
INGREDIENTS = ["VELORA", "DUXIMA", "KORELA", "MORO", "SANOVA"]
TASKS = ["Ingredient", "Applicant_Full_Name_prompt", "Exclusivity_Date"]


def make_rows(
    num_trials: int = 20, ingredients: Sequence[str] = INGREDIENTS
) -> list[dict[str, Any]]:
    """Return three questions a trial; trial i tests ingredient i modulo their number."""
    rows = []
    for trial in range(num_trials):
        ingredient = ingredients[trial % len(ingredients)]
        # A salt and another spelling are still the same ingredient.
        golds = [ingredient if trial < 10 else f"{ingredient.title()} sulfate", f"{ingredient} INC"]
        for task, gold in zip(TASKS, [*golds, None], strict=True):
            prompt = f"For clinical trial NCT{90000000 + trial}, what is its {task}? Über alles: ≥"
            row = {"prompt": prompt, "gold": gold, "task_name": task}
            rows.append(row | {"split": "MedBrowseComp_605"})
    return rows


def save_parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def save_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def converter() -> ModuleType:
    spec = spec_from_file_location("convert_dataset", ROOT / "convert_dataset.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def convert(
    converter: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the converter with --output in tmp_path; give exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        output = ["--output", str(tmp_path / "train.jsonl")]
        code = converter.main([*map(str, arguments), *output])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_rows_become_entries_in_order(
    convert: Callable[..., tuple[int, str, str]], converter: ModuleType, tmp_path: Path
) -> None:
    rows = make_rows(1)
    code, out, err = convert("--source", save_parquet(tmp_path / "rows.parquet", rows))
    assert (code, err) == (0, "")
    assert out == (
        f"Loading {tmp_path}/rows.parquet...\n"
        "Converting 3 rows...\n"
        "Note: no val.jsonl is written: two ingredients are needed to hold one out; these rows "
        "have trials of 1\n"
        f"Writing {tmp_path}/train.jsonl...\n"
        "\nTask distribution:\n"
        "  applicant_full_name: 1\n"
        "  exclusivity_date: 1\n"
        "  ingredient: 1\n"
        f"\n{converter.OVERLAP_NOTE}\n"
        "\nDone! 3 rows to train on\n"
    )
    system = {"role": "system", "content": converter.SYSTEM_PROMPT}
    assert read(tmp_path / "train.jsonl") == [
        {
            "messages": [system, {"role": "user", "content": row["prompt"]}],
            "tools": ["browse"],
            "metadata": {
                "expected_answer": gold,
                "task_name": task,
                "split": "MedBrowseComp_605",
            },
        }
        for row, gold, task in zip(
            rows,
            ["VELORA", "VELORA INC", "NA"],
            ["ingredient", "applicant_full_name", "exclusivity_date"],
            strict=True,
        )
    ]


def test_parquet_jsonl_and_a_folder_give_the_same(
    convert: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    rows = make_rows()
    folder = tmp_path / "dataset"
    save_parquet(folder / "data" / "MedBrowseComp_605-00000-of-00001.parquet", rows)
    save_parquet(folder / "data" / "MedBrowseComp_50-00000-of-00001.parquet", rows[:6])
    results = []
    for source in (
        save_parquet(tmp_path / "rows.parquet", rows),
        save_jsonl(tmp_path / "rows.jsonl", rows),
        folder,
    ):
        assert convert("--source", source)[0] == 0
        results.append((tmp_path / "train.jsonl").read_bytes())
    assert results[0] == results[1] == results[2]
    assert convert("--source", folder, "--split", "MedBrowseComp_50")[0] == 0
    assert len(read(tmp_path / "train.jsonl")) == 6


def test_a_split_may_have_any_name(
    convert: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "dataset"
    rows = [{**row, "split": None} for row in make_rows()]
    save_parquet(folder / "data" / "my.own_7-00000-of-00001.parquet", rows)
    assert convert("--source", folder)[0] == 0  # the only one there is
    assert {e["metadata"]["split"] for e in read(tmp_path / "train.jsonl")} == {"my.own_7"}
    save_parquet(folder / "data" / "other-00000-of-00001.parquet", rows[:3])
    assert convert("--source", folder)[2] == (
        "Error: there is no split MedBrowseComp_605; take one with --split: my.own_7, other\n"
    )
    assert convert("--source", folder, "--split", "other")[0] == 0
    assert len(read(tmp_path / "train.jsonl")) == 3
    assert convert("--source", folder, "--split", "third")[2] == (
        "Error: there is no split third; take one with --split: my.own_7, other\n"
    )


def test_ingredients_are_told_apart_as_answers_are(converter: ModuleType) -> None:
    salts = converter.SALT_WORDS.split()
    names = ["", "Imatinib Mesylate (Gleevec)", "A and B; c/D, [e] É-f", "sodium chloride", *salts]
    names += [f"velora {salt} forte" for salt in salts]
    assert [converter.normalize_ingredient(name) for name in names] == [
        normalize_ingredient(name) for name in names
    ]
    assert len(salts) == 54


@pytest.mark.parametrize("kind", ["client", "ours", "none", "folder"])
def test_the_package_index_s_rnow_is_told_from_this_one(
    converter: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    if kind != "none":
        (tmp_path / "rnow" / ("medbrowse" if kind == "ours" else "cli")).mkdir(parents=True)
    if kind in ("client", "ours"):
        (tmp_path / "rnow" / "__init__.py").touch()
    # In a process of its own, which sees the standard library and this folder alone.
    program = (
        f"import sys; sys.path[:0] = {[str(tmp_path), str(ROOT)]!r}\n"
        "import convert_dataset; convert_dataset.main(['--source', 'nowhere'])"
    )
    command = [sys.executable, "-E", "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "..")
    note = f"{converter.OTHER_RNOW_NOTE}\n" if kind == "client" else ""
    assert done.stderr == f"{note}Error: there is no file or folder nowhere\n"


def test_limit_takes_the_first_rows_and_0_takes_all(
    convert: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    source = save_jsonl(tmp_path / "rows.jsonl", make_rows())
    convert("--source", source, "--limit", 4)
    assert len(read(tmp_path / "train.jsonl")) == 4
    convert("--source", source, "--limit", 0)
    assert len(read(tmp_path / "train.jsonl")) == 60


def test_held_out_rows_share_no_ingredient_with_the_others(
    convert: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    source = save_jsonl(tmp_path / "rows.jsonl", make_rows())
    code, out, _ = convert("--source", source, "--val-split", 0.4)
    assert code == 0
    train, val = read(tmp_path / "train.jsonl"), read(tmp_path / "val.jsonl")
    assert (len(train), len(val)) == (36, 24)  # 3 and 2 of 5 ingredients, 12 rows each
    # The company is named after the ingredient, which makes it its key.
    answers = [
        {e["metadata"]["expected_answer"] for e in part if e["metadata"]["task_name"][:3] == "app"}
        for part in (train, val)
    ]
    # Which ones is the same in every process and on every machine.
    assert answers[1] == {"KORELA INC", "SANOVA INC"}
    assert answers[0] == {f"{name} INC" for name in INGREDIENTS} - answers[1]
    assert out.endswith("\nDone! 36 rows to train on, 24 held out\n")
    assert "Note:" not in out


def test_some_rows_are_held_out_where_nobody_says_how_many(
    convert: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    ingredients = [f"VELORA{letter}" for letter in "ABCDEFGHIJ"]
    source = save_jsonl(tmp_path / "rows.jsonl", make_rows(20, ingredients))
    _, out, _ = convert("--source", source)
    assert out.endswith("\nDone! 54 rows to train on, 6 held out\n")  # 15 % are 9; 6 is one more
    assert {entry["metadata"]["expected_answer"] for entry in read(tmp_path / "val.jsonl")} == {
        "VELORAD",
        "VELORAD INC",
        "Velorad sulfate",
        "NA",
    }
    _, out, _ = convert("--source", source, "--val-split", 0)
    assert out.endswith("\nDone! 60 rows to train on\n")


def test_the_split_depends_on_the_rows_alone(
    convert: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    rows = make_rows()
    seen = []
    for name, order in (("a", rows), ("b", rows), ("c", rows[::-1])):
        source = save_jsonl(tmp_path / f"{name}.jsonl", order)
        convert("--source", source, "--val-split", 0.2)
        val = read(tmp_path / "val.jsonl")
        seen.append(sorted(json.dumps(entry) for entry in val))
    assert seen[0] == seen[1] == seen[2]


def test_rows_of_a_trial_without_ingredient_are_left_out_and_counted(
    convert: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    rows = make_rows()[1:]  # the first trial has lost its ingredient
    rows.append({"prompt": "No trial here.", "gold": "x", "task_name": "Ingredient", "split": "s"})
    source = save_jsonl(tmp_path / "rows.jsonl", rows)
    _, out, _ = convert("--source", source, "--val-split", 0.4)
    assert "Left out 3 rows whose ingredient is not known: they could be in both.\n" in out
    assert len(read(tmp_path / "train.jsonl")) + len(read(tmp_path / "val.jsonl")) == 57


def test_an_old_val_file_is_pointed_out(
    convert: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "val.jsonl").write_text("old")
    _, out, _ = convert("--source", save_jsonl(tmp_path / "rows.jsonl", make_rows(1)))
    assert (
        f"Note: {tmp_path}/val.jsonl is of an earlier conversion and may share answers with "
        f"{tmp_path}/train.jsonl\n"
    ) in out
    assert (tmp_path / "val.jsonl").read_text() == "old"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "task_name": "t"}, "row 1 has no column gold; it has prompt, task_name"),
        (
            {"prompt": "", "gold": "g", "task_name": "t"},
            "row 1 has an empty prompt or task_name",
        ),
    ],
)
def test_rows_in_another_form_are_refused(
    convert: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    row: dict[str, Any],
    message: str,
) -> None:
    source = save_jsonl(tmp_path / "rows.jsonl", [row])
    assert convert("--source", source)[::2] == (1, f"Error: {message}\n")
    assert not (tmp_path / "train.jsonl").exists()


def test_impossible_shares_are_refused(
    convert: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    one = save_jsonl(tmp_path / "one.jsonl", make_rows(1))
    assert convert("--source", one, "--val-split", 0.5)[2] == (
        "Error: two ingredients are needed to hold one out; these rows have trials of 1\n"
    )
    all_rows = save_jsonl(tmp_path / "rows.jsonl", make_rows())
    assert convert("--source", all_rows, "--val-split", 0.1)[2] == (
        "Error: 0.1 of 60 rows is less than the 12 rows of any ingredient; take a larger "
        "--val-split\n"
    )


def test_sources_that_cannot_be_read_are_named(
    convert: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    assert convert("--source", gone)[2] == f"Error: there is no file or folder {gone}\n"
    odd = tmp_path / "rows.xlsx"
    odd.write_text("")
    assert convert("--source", odd)[2] == (
        f"Error: {odd} is none of .parquet, .jsonl, .json, .csv\n"
    )
    bad = tmp_path / "rows.parquet"
    bad.write_text("not parquet")
    code, _, err = convert("--source", bad)
    assert code == 1
    assert err.startswith(f"Error: {bad} cannot be read: ")
    assert "Traceback" not in err


def test_without_a_network_the_message_says_how_to_go_on(
    convert: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for name in ("HF_HUB_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    code, out, err = convert()
    assert (code, out) == (1, "Loading AIM-Harvard/MedBrowseComp...\n")
    assert err == (
        "Error: 127.0.0.1 cannot be reached (Connection refused). Where there is a network: hf "
        "download AIM-Harvard/MedBrowseComp --repo-type dataset --local-dir medbrowsecomp; then "
        "here: python convert_dataset.py --source medbrowsecomp\n"
    )
    assert not (tmp_path / "train.jsonl").exists()


@pytest.mark.parametrize("num", [2, 0])
def test_what_a_library_does_at_the_interpreter_s_end_does_not_change_the_exit_code(
    tmp_path: Path, num: int
) -> None:
    rows = make_rows(num)
    (tmp_path / "datasets.py").write_text(
        "import atexit, logging, os\n"
        "atexit.register(os.abort)\n"
        "logging.set_verbosity = logging.disable\n"
        f"load_dataset = lambda *args, **kwargs: {{'train': {rows!r}}}\n"
    )
    save_jsonl(tmp_path / "rows.jsonl", rows)
    shutil.copyfile(ROOT / "convert_dataset.py", tmp_path / "convert_dataset.py")
    command = [sys.executable, "convert_dataset.py", "--source", "rows.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout != "") == (int(num == 0), True), done.stderr
