"""`rnow eval` and `rnow test` on the real demo models and a short run of them."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_S, wait_until_held
from short_runs import ForkedCli, metrics, started

from rnow.commands.init import init_project

REWARDS = """
import rnow.medbrowse
from rnow.core import RewardArgs, get_response, grader, reward

@reward
def accuracy(args: RewardArgs, messages: list) -> float:
    return float(args.metadata["expected_answer"] in get_response(messages))

@reward
async def broken(args: RewardArgs, messages: list) -> float:
    raise ValueError("no idea")

@grader
def undecided(expected: str, answered: str):
    return None
"""
SHORT = ("data.batch_size=2", "data.group_size=2", "trainer.max_steps=3", "trainer.save_step=2")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, rnow: ForkedCli) -> Path:
    """The demo's project with six held-out questions, and a run of three steps."""
    folder = tmp_path_factory.mktemp("projects") / "clinic"
    init_project(folder, template="clinic")
    val = folder / "val.jsonl"
    val.write_text("".join(val.read_text().splitlines(keepends=True)[:6]))
    done = rnow("run", folder, *SHORT, "trainer.eval_step=2")
    assert done.status == 0, done.output
    return folder


def figures(rnow: ForkedCli, *words: object, status: int = 0) -> dict[str, Any]:
    done = rnow(*words, "--json")
    assert done.status == status, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def records(tried: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(Path(file).read_text()) for file in tried["files"]]


def test_a_run_evaluates_before_its_first_step_every_so_often_and_at_its_end(
    project: Path,
) -> None:
    run = project / "runs" / "clinic"
    lines = [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]
    assert [(line["step"], line["n"], line["failed"]) for line in lines] == [
        (0, 6, 0),
        (2, 6, 0),
        (3, 6, 0),
    ]
    accuracy = [line.get("eval/accuracy") for line in metrics(run)]
    assert accuracy == [lines[0]["accuracy"], None, lines[1]["accuracy"]]


def test_without_a_name_the_run_is_evaluated_and_its_last_checkpoint_gives_the_same(
    project: Path, rnow: ForkedCli
) -> None:
    run = project / "runs" / "clinic"
    default = figures(rnow, "eval", project)
    assert default.pop("model") == str(run / "model")
    checkpoint = figures(rnow, "eval", project, "-m", run / "checkpoints" / "latest")
    assert checkpoint.pop("model") == f"{run} after step 3"
    assert checkpoint == default
    last = json.loads((run / "evals.jsonl").read_text().splitlines()[-1])
    assert {name: last[name] for name in default} == default
    kept = figures(rnow, "eval", project, "-m", "clinic/checkpoints/000002", "-n", 3)
    assert (kept["model"], kept["n"]) == (f"{run} after step 2", 3)


def test_pass_at_k_is_estimated_from_attempts_at_its_own_temperature(
    project: Path, rnow: ForkedCli
) -> None:
    found = figures(rnow, "eval", project, "-m", "base", "--pass4", "--pass4-temp", 1, "-n", 2)
    one, four = found["pass_at"]["1"], found["pass_at"]["4"]
    assert (one["n"], one["temperature"], one["value"]) == (2, 0.0, found["accuracy"])
    assert (four["n"], four["temperature"]) == (2, 1.0)
    assert 0 <= four["value"] <= 1
    done = rnow("eval", project, "--no-pass1")
    assert (done.status, done.output) == (
        2,
        "Error: At least one pass@k metric must be enabled\n",
    )


def test_rollouts_are_shown_and_kept_each_time_in_a_new_folder(
    project: Path, rnow: ForkedCli
) -> None:
    shutil.rmtree(project / "rollouts", ignore_errors=True)  # of another test
    done = rnow("test", project, "-e", "0,2", "--teacher")
    assert done.status == 0, done.output
    assert "Model: teacher\n" in done.output
    for number, entry in ((1, 0), (2, 2)):
        assert f"Rollout {number} · entry {entry} (line {entry + 1}) ─" in done.output
    assert "→ rollouts/rollout_1/sample_1.json" in done.output
    assert "│ # NCT" in done.output  # a page that came from the real browse tool
    assert done.output.splitlines()[-1] == (
        f"Rollout Complete: 2 of 2 rollouts have ended and are kept in {project}/rollouts/"
        "rollout_1; 2 of 2 are correct"
    )
    again = figures(rnow, "test", project, "-e", "0,2", "--teacher")
    assert again["folder"] == str(project / "rollouts" / "rollout_2")
    first = project / "rollouts" / "rollout_1" / "sample_2.json"
    assert json.loads(first.read_text())["conversation"] == records(again)[1]["conversation"]


@pytest.mark.slow
def test_without_a_choice_entries_are_drawn_and_the_runs_model_rolls_out(
    project: Path, rnow: ForkedCli
) -> None:
    tried = figures(rnow, "test", project, "-n", 3)
    assert tried["model"] == str(project / "runs" / "clinic" / "model")
    assert (tried["rollouts"], tried["failed"], len(set(tried["entries"]))) == (3, 0, 3)
    assert figures(rnow, "test", project, "-n", 3)["entries"] == tried["entries"]
    assert tried["tools"]["browse"]["calls"] == sum(
        len(message.get("tool_calls", ()))
        for record in records(tried)
        for message in record["conversation"]
    )


@pytest.mark.slow
def test_no_tools_and_a_smoke_test_are_short(project: Path, rnow: ForkedCli) -> None:
    tried = figures(rnow, "test", project, "-e", 1, "--no-tools", "-m", "base")
    (record,) = records(tried)
    assert (record["turns"], record["tool_errors"], tried["tools"]) == (1, [], {})
    smoke = figures(rnow, "test", project, "--smoke-test", "-m", "base")
    assert smoke["entries"] == [0]
    assert records(smoke)[0]["turns"] <= 2


@pytest.mark.slow
def test_a_rollout_that_fails_is_kept_counted_and_told(project: Path, rnow: ForkedCli) -> None:
    done = rnow("test", project, "-e", "0,1", "-m", "base", "--max-context-window", 16)
    assert done.status == 1
    assert done.output.count("leaves no room in rollout.max_context_window = 16") == 2
    assert done.output.splitlines()[-1] == "2 rollout(s) failed. See errors above."
    folder = max((project / "rollouts").iterdir(), key=lambda path: int(path.name[8:]))
    record = json.loads((folder / "sample_2.json").read_text())
    assert (record["completed"], record["success"], record["correct"]) == ("error", False, None)


@pytest.mark.slow
def test_rewards_that_an_entry_names_are_computed(project: Path, rnow: ForkedCli) -> None:
    entries = [json.loads(line) for line in (project / "train.jsonl").read_text().splitlines()[:3]]
    for entry, names in zip(entries, (["accuracy"], ["accuracy", "broken"], []), strict=True):
        entry["rewards"] = names
    entries[0]["grader"] = "undecided"
    (project / "few.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    before = (project / "rewards.py").read_text()
    (project / "rewards.py").write_text(REWARDS)
    few = ("data.train_file=few.jsonl", "data.batch_size=1")
    tried = figures(rnow, "test", project, "--all", "--teacher", *few)
    found = [(record["total_reward"], record["rewards"]) for record in records(tried)]
    assert found == [
        (1.0, {"accuracy": 1.0}),
        (1.0, {"accuracy": 1.0, "broken": "error"}),  # counts as 0 there
        (None, {}),
    ]
    assert [(record["correct"], record["errors"]) for record in records(tried)] == [
        (
            None,
            [
                "no verdict from the grader undecided: returned None, which is neither True nor "
                "False"
            ],
        ),
        (True, ["broken: ValueError: no idea"]),
        (True, []),
    ]
    assert (tried["mean_reward"], tried["failed"], tried["failed_rewards"]) == (1.0, 0, 1)
    done = rnow("test", project, "--all", "--teacher", *few)
    assert done.output.splitlines()[-1].endswith(
        "; 2 of 2 are correct; 1 could not be graded; avg_reward=1.000, in which 1 without a "
        "number count as 0"
    )
    done = rnow("test", project, "-e", 2, "-m", "base", "data.grader=same_text", *few)
    assert (
        "there is a rewards.py, but these entries name no rewards: none are computed" in done.output
    )
    (project / "rewards.py").write_text(before)


def make_untaught(folder: Path, kind: str) -> Path:
    """Make the demo's project as one of a kind that has no teacher, with four questions."""
    init_project(folder, template="clinic")
    text = (
        (folder / "config.yml")
        .read_text()
        .replace("dataset_type: distill", f"dataset_type: {kind}")
    )
    (folder / "config.yml").write_text(re.sub(r"teacher:\n(  .*\n)+", "", text))
    lines = (folder / "train.jsonl").read_text().splitlines()[:4]
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for entry in entries:
        if kind == "rl":
            entry["rewards"] = ["accuracy"]
        else:
            entry["messages"].append({"role": "assistant", "content": "INGREDIENT: taught"})
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    for name in ("train.jsonl", "val.jsonl"):
        (folder / name).write_text(text)
    (folder / "rewards.py").write_text(REWARDS)
    return folder


def test_a_project_of_rewards_is_tried_and_evaluated_by_them(
    tmp_path: Path, rnow: ForkedCli
) -> None:
    folder = make_untaught(tmp_path / "rl", "rl")
    # Two of the four questions are for an ingredient; the untrained student fails at the others.
    by_rewards = figures(rnow, "eval", folder, "-m", "base")
    share = by_rewards["by_task"]["ingredient"] / 2
    assert by_rewards["reward"] == by_rewards["accuracy"] == share
    assert (by_rewards["n"], by_rewards["constant"], by_rewards["format_ok"]) == (4, None, 1.0)
    tried = figures(rnow, "test", folder, "-e", "0", "-m", "base")
    assert records(tried)[0]["rewards"].keys() == {"accuracy"}
    done = rnow("eval", folder, "-m", "teacher")
    assert done.output.splitlines()[-1] == (
        "Error: --model teacher: there is none in a project of dataset_type rl"
    )
    lines = [json.loads(line) for line in (folder / "val.jsonl").read_text().splitlines()]
    lines[2]["rewards"] = ["accuracy", "broken"]
    (folder / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = rnow("eval", folder, "-m", "base")
    assert done.status == 1
    assert done.output.splitlines()[-1].startswith(
        "Error: 1 of 4 rollouts of held-out prompts have failed or could not be graded, and the "
        "others would say little; 1 times because: no number from the reward broken: ValueError: "
    )
    (folder / "rewards.py").unlink()
    done = rnow("eval", folder, "-m", "base", "data.grader=same_text")
    assert done.output.splitlines()[-1] == (
        "Error: val.jsonl:1: rewards names accuracy, but there is no rewards.py: write one, with "
        "@reward (from rnow.core) above each, or remove rewards from the entries"
    )


def test_answers_that_training_leaves_out_are_left_out_of_an_evaluation(
    tmp_path: Path, rnow: ForkedCli
) -> None:
    folder = make_untaught(tmp_path / "sft", "sft")
    words = ("eval", folder, "-m", "base", "dataset_type=distill", "teacher.path=models/student")
    done = rnow(*words)
    assert "leave such messages out with data.drop_last_answer: true" in done.output
    assert figures(rnow, *words, "data.drop_last_answer=true")["n"] == 4


def test_an_example_to_learn_from_is_tried_up_to_its_answer(
    tmp_path: Path, rnow: ForkedCli
) -> None:
    folder = make_untaught(tmp_path / "sft", "sft")
    (record,) = records(figures(rnow, "test", folder, "-e", "0", "-m", "base"))
    assert [message["role"] for message in record["conversation"]][:3] == [
        "system",
        "user",
        "assistant",
    ]
    assert "taught" not in json.dumps(record["conversation"])
    assert figures(rnow, "eval", folder, "-m", "base")["n"] == 4
    done = rnow("test", folder, "dataset_type=midtrain", "-m", "base")
    assert done.output.splitlines()[-1] == (
        f"Error: {folder}/config.yml: dataset_type midtrain has texts, and no prompts that a "
        "model could answer"
    )


def test_an_entry_that_is_not_there_is_named(project: Path, rnow: ForkedCli) -> None:
    num = len((project / "train.jsonl").read_text().splitlines())
    done = rnow("test", project, "-e", 900, "-m", "base")
    assert done.status == 2
    assert done.output.splitlines()[-1] == (
        f"Error: Entry index 900 out of range. train.jsonl has {num} entries (0-{num - 1})"
    )


@pytest.mark.slow
def test_ctrl_c_cancels_and_keeps_what_was_finished(project: Path) -> None:
    before = set((project / "rollouts").glob("*"))
    words = ("test", project, "--all", "-n", "9", "-m", "base", "rollout.concurrency=4")
    with started(*words, hold_at="rollout/sampled:60") as process:
        wait_until_held(process.pid)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    (folder,) = set((project / "rollouts").glob("*")) - before
    files = sorted(folder.iterdir())
    assert files
    assert all(json.loads(file.read_text())["success"] for file in files)
    num = 9 * len((project / "train.jsonl").read_text().splitlines())
    assert errors == (
        f"Stopped by Ctrl-C: {len(files)} of {num} rollouts have ended and are kept in {folder}\n"
    )
