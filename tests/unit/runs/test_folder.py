import os
import shutil
from pathlib import Path

import pytest

from rnow.errors import CheckpointError, EngineError, Interrupted, ModelError
from rnow.runs.folder import RunDirectory, slug
from rnow.runs.resume import check_finished, check_inputs, check_not_lost, check_resumable


def make_run(folder: Path) -> RunDirectory:
    run = RunDirectory(folder)
    run.open()
    return run


def test_a_second_run_in_one_folder_is_refused_with_the_holder(tmp_path: Path) -> None:
    first = make_run(tmp_path / "a")
    first.write_state(step=1, num_steps=9, finished=False)
    holder = first.state()["holder"]
    assert holder["pid"] == os.getpid()
    with pytest.raises(CheckpointError) as caught:
        make_run(tmp_path / "a")
    assert str(caught.value) == (
        f"{tmp_path / 'a'} is held by a run with pid {holder['pid']} on {holder['host']}; "
        "wait for it, stop it, or use --fresh"
    )
    first.close()
    make_run(tmp_path / "a").close()


def test_fresh_never_takes_a_folder_that_is_there(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        run = RunDirectory.choose(tmp_path, "clinic", fresh=True)
        run.path.mkdir(parents=True)
        names.append(run.path.name)
    assert names == ["clinic", "clinic-2", "clinic-3"]
    assert RunDirectory.choose(tmp_path, "clinic", fresh=False).path.name == "clinic"


def test_fresh_takes_a_run_that_was_refused_before_it_made_anything(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "clinic").close()
    refused = RunDirectory.choose(tmp_path, "clinic", fresh=True)
    assert refused.path.name == "clinic"
    refused.open()
    assert RunDirectory.choose(tmp_path, "clinic", fresh=True).path.name == "clinic-2"  # it runs
    refused.write_plan({"steps": 1})
    refused.write_plan({"steps": 2})  # of the call that was not refused
    assert refused.read_plan() == {"steps": 2}
    refused.trajectories(0).write_text("{}\n")
    refused.close()
    assert RunDirectory.choose(tmp_path, "clinic", fresh=True).path.name == "clinic-2"


@pytest.mark.parametrize("place", ["runs", "runs/clinic"])
@pytest.mark.parametrize("is_link", [False, True])
def test_what_is_no_folder_is_never_taken_for_one(
    tmp_path: Path, place: str, is_link: bool
) -> None:
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.symlink_to("nowhere") if is_link else file.write_text("")
    with pytest.raises(CheckpointError) as caught:
        RunDirectory.choose(tmp_path, "clinic", fresh=False)
    assert str(caught.value) == (
        f"{file} is no folder, and the run's files go there: move it away, or give the project "
        "another folder"
    )
    if place == "runs/clinic":
        chosen = RunDirectory.choose(tmp_path, "clinic", fresh=True)
        assert chosen.path == tmp_path / "runs" / "clinic-2"


def test_rewinding_forgets_what_an_unfinished_step_left(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    for step in range(4):
        run.append_metrics({"step": step, "reverse_kl": 0.5})
        run.append_evaluation({"step": step, "accuracy": 0.5})
        run.trajectories(step).write_text("{}\n")
    with run.evals_file.open("a") as file:
        file.write('{"step": 4, "by_task": {"company": 0.5}')  # killed in mid-write
    run.rewind(2)
    assert run.evals_file.read_text() == (
        '{"step": 0, "accuracy": 0.5}\n{"step": 1, "accuracy": 0.5}\n'
    )
    assert [line["step"] for line in run.read_metrics()] == [0, 1]
    # The journal of step 2 itself stays: its trajectories are taken up again.
    names = sorted(path.name for path in (run.path / "trajectories").iterdir())
    assert names == ["000000.jsonl", "000001.jsonl", "000002.jsonl"]
    run.close()


def test_rewinding_keeps_the_journal_that_the_weights_of_the_step_sampled(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    for step in range(5):
        run.trajectories(step).write_text("{}\n")
    run.rewind(2, max_lag=1)
    names = sorted(path.name for path in (run.path / "trajectories").iterdir())
    assert names == ["000000.jsonl", "000001.jsonl", "000002.jsonl", "000003.jsonl"]
    run.close()


def test_a_run_has_begun_with_its_first_rollout_or_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.write_config({"data": {"batch_size": 64}})
    run.trajectories(0).touch()
    assert not run.has_begun
    run.trajectories(0).write_text("{}\n")
    assert run.has_begun
    run.trajectories(0).unlink()
    run.latest.mkdir(parents=True)
    assert run.has_begun
    run.close()


def test_a_run_whose_last_checkpoint_is_gone_is_not_begun_anew_in_its_place(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    check_not_lost(run)
    run.trajectories(0).with_suffix(".jsonl.zst").touch()  # made once a checkpoint holds the step
    with pytest.raises(CheckpointError) as caught:
        check_not_lost(run)
    assert str(caught.value) == (
        f"{run.latest} is gone, and steps of this run are done; if a numbered one is left beside "
        "it, copy that there, or begin again with --fresh"
    )
    run.latest.mkdir(parents=True)
    check_not_lost(run)
    run.close()


def test_records_of_a_run_that_are_gone_or_damaged_are_one_sentence(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.config_file.write_text("x: [")
    run.state_file.write_text('{"step": ')
    run.surroundings_file.write_text("[]")
    readers = {
        run.read_config: run.config_file,
        run.read_inputs: run.inputs_file,
        run.state: run.state_file,
        run.read_surroundings: run.surroundings_file,
    }
    for read, file in readers.items():
        with pytest.raises(CheckpointError) as caught:
            read()
        assert str(caught.value).startswith(f"{file} is a run's own record and cannot be read: ")
        assert str(caught.value).endswith("; put it back from a copy, or begin again with --fresh")
    run.close()


def test_only_the_newest_checkpoints_and_policies_are_kept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    for step in (10, 20, 30, 40):
        run.checkpoint(step).mkdir(parents=True)
        run.policy(step).mkdir()
    run.latest.mkdir()
    run.forget_checkpoints(keep_last=2)
    run.forget_policies(before=30)
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [
        "000030",
        "000040",
        "latest",
    ]
    assert sorted(path.name for path in (run.path / "policies").iterdir()) == ["000030", "000040"]
    run.close()


def test_a_torn_line_of_metrics_is_passed_over(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.append_metrics({"step": 0, "reverse_kl": 0.5})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 1, "reve')
    assert run.read_metrics() == [{"step": 0, "reverse_kl": 0.5}]
    run.close()


def test_a_project_name_becomes_a_folder_name() -> None:
    assert (
        slug("MedBrowse Agent (On-Policy Distillation)") == "medbrowse-agent-on-policy-distillation"
    )
    assert slug("…") == "run"


def test_another_model_or_rank_is_refused_with_the_difference() -> None:
    before = {"model": {"path": "a", "qlora_rank": 8}, "trainer": {"learning_rate": 1e-3}}
    now = {"model": {"path": "b", "qlora_rank": 8}, "trainer": {"learning_rate": 1e-3}}
    with pytest.raises(CheckpointError) as caught:
        check_resumable(before, now)
    assert str(caught.value) == (
        "the unfinished run was made with another config:\n"
        "  model.path: the run has 'a', now given is 'b'\n"
        "Put these back to go on with it, or use --fresh to begin another run"
    )


def test_a_finished_run_is_told_from_one_with_other_settings() -> None:
    run = Path("runs/a")
    before = {"trainer": {"num_epochs": 1, "save_step": 5}, "model": {"path": "a"}}
    now = {**before, "trainer": {"num_epochs": 2, "save_step": 9}}
    with pytest.raises(CheckpointError) as caught:
        check_finished(run, before, now)
    assert str(caught.value) == (
        "nothing was trained: runs/a is finished, and was made with another config:\n"
        "  trainer.num_epochs: the run has 1, now given is 2\n"
        "To train with these settings, use --fresh, which begins another run; to train under a "
        "name of its own, --name NAME"
    )
    # How often it was saved makes no other run, and a setting that is new since made none.
    check_finished(run, before, {**before, "trainer": {"num_epochs": 1, "save_step": 9}, "new": 1})


def test_a_changed_learning_rate_is_taken_over_and_said() -> None:
    before = {"algorithm": {"kl_penalty_coef": 1.0}, "trainer": {"learning_rate": 1e-3}}
    now = {"algorithm": {"kl_penalty_coef": 0.5}, "trainer": {"learning_rate": 1e-4}}
    assert check_resumable(before, now) == (
        "algorithm.kl_penalty_coef: 1.0 becomes 0.5",
        "trainer.learning_rate: 0.001 becomes 0.0001",
    )


def test_engines_may_change_and_their_flags_are_one_setting() -> None:
    before = {"engine": {"kind": "local", "python": None, "args": {}}}
    now = {"engine": {"kind": "vllm", "python": "p", "args": {"max_num_seqs": 8}}}
    assert check_resumable(before, now) == (
        "engine.args: {} becomes {'max_num_seqs': 8}",
        "engine.kind: 'local' becomes 'vllm'",
    )


def test_other_prompts_are_refused_and_other_tools_are_told() -> None:
    before = {"data.train_file": "a", "tools.py": "b", "tokenizer.json": "c"}
    assert check_inputs(before, before) == ()
    assert check_inputs(before, {**before, "tools.py": "x"}) == (
        "tools.py has changed since the run began",
    )
    with pytest.raises(CheckpointError) as caught:
        check_inputs(before, {**before, "data.train_file": "x"})
    assert str(caught.value) == (
        "data.train_file changed since the unfinished run began; put the old content back to go on "
        "with it, or use --fresh to begin another run"
    )


def test_what_only_says_how_visibly_a_run_goes_may_change_in_silence() -> None:
    before = {"trainer": {"save_step": 5, "eval_step": 0}, "rollout": {"concurrency": 8}}
    now = {"trainer": {"save_step": -1, "eval_step": 2}, "rollout": {"concurrency": 64}}
    assert check_resumable(before, now) == ()


@pytest.mark.parametrize("what", ["deleted", "moved", "made anew"])
def test_a_folder_that_goes_under_its_run_ends_the_run(tmp_path: Path, what: str) -> None:
    run = make_run(tmp_path / "run")
    run.append_metrics({"step": 0})
    if what == "deleted":
        shutil.rmtree(run.path)
    else:
        run.path.rename(tmp_path / "elsewhere")
    if what == "made anew":
        make_run(tmp_path / "run").close()
    with pytest.raises(CheckpointError) as caught:
        run.append_metrics({"step": 1})
    assert str(caught.value) == (
        f"{run.path} was deleted or moved while its run went on, so nothing more of the run can be "
        "kept. It ends here; move the folder back and run again to go on from its last checkpoint"
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    run.close()


@pytest.mark.parametrize(
    "error", [FileNotFoundError("step.jsonl"), EngineError("no adapter"), ModelError("no config")]
)
def test_a_folder_that_is_gone_explains_whatever_failed_for_want_of_a_file(
    tmp_path: Path, error: Exception
) -> None:
    run = RunDirectory(tmp_path / "run")

    def fail(reason: Exception, *, gone: bool) -> None:
        with run.held():
            if gone:
                run.path.rename(tmp_path / type(reason).__name__)
            raise reason

    with pytest.raises(CheckpointError, match="was deleted or moved while its run went on"):
        fail(error, gone=True)
    # Where it is there, and where somebody asked for the end, that is what is said.
    with pytest.raises(type(error)) as caught:
        fail(error, gone=False)
    assert caught.value is error
    with pytest.raises(Interrupted):
        fail(Interrupted("Stopped by SIGTERM", 143), gone=True)
    with run.held():  # its lock was given back each time
        assert run.holder() is not None
