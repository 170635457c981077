"""What a template or a tool reads of clock and environment is the run's, whoever goes on."""

import io
import json
from pathlib import Path

import pytest
from check_matrix import Cell, write_project
from rich.console import Console
from tokenizers import Tokenizer

from rnow.commands.eval import evaluate_project
from rnow.commands.run import train_project
from rnow.config.load import load_config
from rnow.evaluation.pass_at_k import GREEDY
from rnow.runs.journal import read_journal

BEGAN = {
    "today": "2025-01-01",
    "environ": {"TZ": "UTC", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"},
}
# What a run has that another version of rnow began.
OTHER = {"today": "2020-02-03", "environ": {**BEGAN["environ"], "TZ": "Europe/Paris"}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose template writes the day."""
    cell = Cell(template="llama3_2", vocabulary="same", has_tools=False)
    project = write_project(tmp_path / "project", cell)
    entry = json.loads((project / "train.jsonl").read_text().splitlines()[0])
    entry["metadata"] = {"expected_answer": "Acme"}
    (project / "val.jsonl").write_text(json.dumps(entry))
    return project


def train(project: Path, *overrides: str) -> str:
    console = Console(file=io.StringIO(), width=1000)
    loaded = load_config(project, overrides=overrides)
    train_project(loaded, project, name="run", fresh=False, console=console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def prompt_of(project: Path, *, step: int) -> str:
    tokenizer = Tokenizer.from_file(str(project / "student" / "tokenizer.json"))
    (scored, *_) = read_journal(project / "runs/run/trajectories" / f"{step:06d}.jsonl")
    ids = scored.trajectory.token_ids[~scored.trajectory.action_mask]
    return str(tokenizer.decode(ids.tolist()))


def test_a_run_goes_on_and_is_evaluated_with_the_day_and_the_variables_that_it_began_with(
    project: Path,
) -> None:
    said = train(project, "trainer.max_steps=1", "data.batch_size=1")
    assert "in every run and evaluation it is 2025-01-01" in said
    kept = project / "runs/run/surroundings.json"
    assert json.loads(kept.read_text()) == BEGAN
    assert "Today Date: 01 Jan 2025" in prompt_of(project, step=0)

    state = project / "runs/run/state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"finished": False}))
    kept.write_text(json.dumps(OTHER))
    said = train(project, "trainer.max_steps=2", "data.batch_size=1")
    assert (
        "the day in prompts stays '2020-02-03', as the run began; now it would be '2025-01-01'\n"
        "TZ stays 'Europe/Paris', as the run began; now it would be 'UTC'\n"
    ) in said
    assert json.loads(kept.read_text()) == OTHER
    assert "Today Date: 03 Feb 2020" in prompt_of(project, step=1)

    for model, day in (("run", "2020-02-03"), ("base", "2025-01-01")):
        console = Console(file=io.StringIO(), width=1000)
        evaluate_project(
            load_config(project),
            project,
            model=model,
            passes=GREEDY,
            max_samples=None,
            console=console,
        )
        said = str(console.file.getvalue())  # type: ignore[attr-defined]
        assert f"in every run and evaluation it is {day}" in said
