"""The real loop on the real demo models, cut short: every part is the one that users run."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import pytest
from processes import PATIENCE_S, wait_until_held
from rich.console import Console
from safetensors.numpy import load_file
from short_runs import (
    assert_bit_equal,
    assert_same_trajectories,
    metrics,
    rnow,
    started,
    trajectories,
    weights,
)

from rnow.commands.init import init_project
from rnow.commands.run import train_project
from rnow.config.load import load_config
from rnow.records import ToolOutcome
from rnow.runs.folder import RunDirectory
from rnow.runs.measured import measured_steps
from rnow.training.registry import find_metric

SHORT = ("data.batch_size=4", "data.group_size=2", "trainer.max_steps=3")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projects") / "clinic"
    init_project(folder, template="clinic")
    return folder


@pytest.fixture(scope="module")
def first_run(project: Path) -> Path:
    rnow("run", project, "--name", "first", *SHORT)
    return project / "runs" / "first"


def test_a_run_has_the_steps_and_rollouts_that_its_plan_said(
    first_run: Path, tmp_path: Path
) -> None:
    plan, lines = RunDirectory(first_run).read_plan(), RunDirectory(first_run).read_metrics()
    assert plan["steps"]["value"] == len(lines)
    assert plan["rollouts"]["value"] == sum(line["rollout/trajectories"] for line in lines)
    assert plan["place"] == "local, cpu"
    # Its own steps are what the next plan is made from.
    shutil.copytree(first_run, tmp_path / "runs" / "first")  # other tests run in its project too
    config = load_config(first_run.parents[1], overrides=SHORT).config
    measured = measured_steps(tmp_path, config, place="local, cpu")
    assert [*measured.counted] == lines


def test_the_engine_receives_the_ids_of_the_ledger_and_agrees_with_the_trainer(
    first_run: Path,
) -> None:
    lines = metrics(first_run)
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert line["tokens/drift"] == 0
        assert line["mismatch_kl"] < 1e-6
        assert line["publish/probe"] < 1e-4
        assert line["publish/decode"] < 1e-4
        assert line["rollout/trajectories"] == 8
        assert line["tokens/action"] > 0
        assert [name for name in line if find_metric(name) is None] == []


def test_every_page_in_a_transcript_came_from_one_http_answer(first_run: Path) -> None:
    lines = metrics(first_run)
    assert [line["step"] for line in lines] == [0, 1, 2]
    for line in lines:
        fetched = line.get("browser/fetched", 0)
        shared = line.get("browser/shared", 0)
        errors = sum(value for name, value in line.items() if name.startswith("browser/error_"))
        assert fetched + shared + errors == line["tool/ok"]
        assert fetched > 0
    answers = sum(
        value
        for line in lines
        for name, value in line.items()
        if name in ("browser/fetched", "browser/error_http_404")
    )
    assert lines[-1]["browser/local_requests"] == answers
    texts: dict[str, set[str]] = {}
    for step in range(3):
        for scored in trajectories(first_run, step):
            for turn in scored.trajectory.turns:
                for call in turn.tool_calls:
                    if call.outcome is ToolOutcome.OK and "status 200" in call.text:
                        texts.setdefault(call.text.split(" ")[0], set()).add(call.text)
    assert texts
    assert all(len(versions) == 1 for versions in texts.values())


def test_the_same_run_twice_gives_the_same_bits(project: Path, first_run: Path) -> None:
    rnow("run", project, "--name", "second", *SHORT)
    second = project / "runs" / "second"
    assert_bit_equal(weights(first_run), weights(second))
    assert metrics(first_run) == metrics(second)
    assert_same_trajectories(first_run, second, num_steps=3)


@pytest.mark.parametrize(("stop_in_step", "number"), [(0, signal.SIGINT), (1, signal.SIGHUP)])
def test_a_run_stopped_by_ctrl_c_or_hangup_and_resumed_gives_the_same_bits(
    project: Path, first_run: Path, stop_in_step: int, number: signal.Signals
) -> None:
    run = project / "runs" / f"interrupted-{stop_in_step}"
    words = ("run", project, "--name", run.name, *SHORT)
    hold_at = f"journal/appended:{8 * stop_in_step + 1}"  # a step has eight rollouts
    with started(*words, hold_at=hold_at) as process:
        assert process.stdout is not None
        process.stdout.close()  # as `| head` does: the run goes on
        wait_until_held(process.pid)
        assert (run / "trajectories" / f"{stop_in_step:06d}.jsonl").stat().st_size
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(PATIENCE_S) == 128 + number
    assert "To go on: rnow run" in errors
    rnow(*words)
    assert_bit_equal(weights(first_run), weights(run))
    # The new process fetches pages again that the old one had.
    assert metrics(first_run, caches=False) == metrics(run, caches=False)
    assert_same_trajectories(first_run, run, num_steps=3)


def test_a_finished_run_is_left_as_it_is(project: Path, first_run: Path) -> None:
    before = (first_run / "state.json").read_bytes()
    done = rnow("run", project, "--name", "first", *SHORT)
    assert "is finished" in done.stdout
    assert (first_run / "state.json").read_bytes() == before
    done = rnow("run", project, "--name", "first", *SHORT, "trainer.num_epochs=7", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"Error: nothing was trained: {first_run} is finished, and was made with another config:\n"
        "  trainer.num_epochs: the run has "
    )
    assert (first_run / "state.json").read_bytes() == before


def test_a_run_does_not_go_on_with_another_rank(project: Path, first_run: Path) -> None:
    state = json.loads((first_run / "state.json").read_text())
    (first_run / "state.json").write_text(json.dumps({**state, "finished": False}))
    done = rnow("run", project, "--name", "first", *SHORT, "model.qlora_rank=2", check=False)
    (first_run / "state.json").write_text(json.dumps(state))
    assert done.returncode == 1
    assert "model.qlora_rank: the run has" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_penalty_the_weights_stay_as_they_were(project: Path) -> None:
    rnow("run", project, "--name", "still", *SHORT, "algorithm.kl_penalty_coef=0")
    run = project / "runs" / "still"
    first, last = sorted((run / "policies").iterdir())[-2:]
    assert_bit_equal(
        load_file(first / "adapter_model.safetensors"),
        load_file(last / "adapter_model.safetensors"),
    )
    b = [value for name, value in weights(run).items() if "lora_B" in name]
    assert b
    assert not any(value.any() for value in b)


def test_with_the_sign_of_the_gap_reversed_reverse_kl_rises(project: Path) -> None:
    loaded = load_config(project, overrides=[*SHORT[:2], "trainer.max_steps=5", "seed=1"])
    kl_by_sign = {}
    for sign in (1.0, -1.0):
        # No config can say so: the copy is not validated.
        algorithm = loaded.config.algorithm.model_copy(update={"kl_penalty_coef": sign})
        config = loaded.config.model_copy(update={"algorithm": algorithm})
        run = train_project(
            dataclasses.replace(loaded, config=config),
            project,
            name=f"sign{sign:+.0f}",
            fresh=True,
            console=Console(quiet=True),
        )
        kl_by_sign[sign] = [line["reverse_kl"] for line in metrics(run.path)]
    assert kl_by_sign[1.0][0] == kl_by_sign[-1.0][0]
    assert kl_by_sign[-1.0][-1] > kl_by_sign[-1.0][0] > kl_by_sign[1.0][-1]


def test_a_student_that_is_its_teacher_has_nothing_to_pay(project: Path) -> None:
    rnow("run", project, "--name", "self", *SHORT, "teacher.path=models/student")
    first = metrics(project / "runs" / "self")[0]
    assert first["trainer/max_advantage"] <= 1e-4


def test_the_trained_model_loads_in_peft_and_merges(project: Path, first_run: Path) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapted = AutoPeftModelForCausalLM.from_pretrained(first_run / "model")
    rnow("export", first_run, "--merge", "--output", first_run / "merged")
    merged = AutoModelForCausalLM.from_pretrained(first_run / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(first_run / "merged")
    assert tokenizer.chat_template
    ids = torch.tensor([tokenizer("Which company makes it?").input_ids])
    with torch.no_grad():
        difference = (adapted(input_ids=ids).logits - merged(input_ids=ids).logits).abs().max()
    # The merged model is stored in the precision of its base, which rounds the sum.
    assert difference < 0.1


@pytest.mark.parametrize("model", ["base", "teacher", "first", "runs/first/model"])
def test_any_model_of_a_project_can_be_evaluated(
    project: Path, first_run: Path, model: str
) -> None:
    done = rnow("eval", project, "--model", model, "-n", 9, "--json")
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["n"] == 9
    assert figures["failed"] == 0
    assert figures["by_task"].keys() == {"ingredient", "company", "date"}
    assert (figures["accuracy"] >= 0.85) == (model == "teacher")


def test_a_model_that_is_not_there_is_named_with_those_that_are(
    project: Path, first_run: Path
) -> None:
    done = rnow("eval", project, "--model", "best", check=False)
    assert done.returncode == 2
    assert "--model best: there is no run and no folder of that name" in done.stderr
    assert "first" in done.stderr


def test_an_evaluation_may_name_mcp_servers_and_begins_with_them(
    project: Path, first_run: Path
) -> None:
    servers = ["--mcp-url", "http://127.0.0.1:9/mcp?key=s3cret", "--mcp-url", "localhost:9/sse"]
    done = rnow("eval", project, "--model", "base", "-n", 1, *servers, check=False)
    assert done.returncode == 1
    assert "rollout.mcp_url = … (was: not set)" in done.stdout
    assert (
        "Error: config.yml: MCP server 1 (http://127.0.0.1:9) cannot be reached: ConnectError"
    ) in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


def test_an_adapter_can_be_exported_and_an_unfinished_run_cannot(
    project: Path, first_run: Path
) -> None:
    rnow("export", first_run, "--output", first_run / "adapter")
    assert_bit_equal(
        load_file(first_run / "adapter" / "adapter_model.safetensors"), weights(first_run)
    )
    card = (first_run / "adapter" / "README.md").read_text()
    assert "`models/student`, taught by `models/teacher`" in card
    assert "3 steps of 4 prompts x 2 rollouts" in card
    done = rnow("export", project / "runs" / "nothing", check=False)
    assert done.returncode == 1
    assert "nothing has no finished model" in done.stderr


def test_other_prompts_are_not_resumed(project: Path, first_run: Path) -> None:
    state, train = first_run / "state.json", project / "train.jsonl"
    old_state, old_train = state.read_text(), train.read_text()
    state.write_text(json.dumps({**json.loads(old_state), "finished": False}))
    train.write_text(old_train.replace("Which", "What", 1))
    try:
        done = rnow("run", project, "--name", "first", *SHORT, check=False)
    finally:
        state.write_text(old_state)
        train.write_text(old_train)
    assert done.returncode == 1
    assert "data.train_file changed since the unfinished run began" in done.stderr


def test_short_flags_are_overrides_and_an_explicit_override_wins(project: Path) -> None:
    done = rnow(
        "run", project, "--dry-run", "-e", 7, "-b", 2, "--lr", "5e-5", "trainer.num_epochs=9"
    )
    for line in (
        "data.batch_size = 2 (was: 16)",
        "trainer.learning_rate = 5e-05 (was: 0.0004)",
        "trainer.num_epochs = 7 (was: 2)",
        "trainer.num_epochs = 9 (was: 7)",
    ):
        assert line in done.stdout
    assert not (project / "runs" / project.name / "state.json").exists()


def test_full_fine_tuning_runs_and_its_model_loads(project: Path) -> None:
    from transformers import AutoModelForCausalLM

    rnow(
        "run", project, "--name", "full", *SHORT, "model.tuning=full", "trainer.learning_rate=1e-4"
    )
    run = project / "runs" / "full"
    probes = [line["publish/probe"] for line in metrics(run)]
    assert len(probes) == 3
    assert max(probes) < 1e-3
    AutoModelForCausalLM.from_pretrained(run / "model")
