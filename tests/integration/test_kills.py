"""A run that is killed by SIGKILL anywhere, and resumed, gives the bits of one that was not."""

from pathlib import Path

import pytest
from short_runs import ForkedCli, assert_same_run

from rnow.commands.init import init_project

pytestmark = pytest.mark.slow

NUM_STEPS = 3
# Three steps of four rollouts, evaluated before, between and after, with one kept checkpoint.
SHORT = (
    "data.batch_size=2",
    "data.group_size=2",
    f"trainer.max_steps={NUM_STEPS}",
    "trainer.eval_step=2",
    "trainer.save_step=2",
)

# Each run is killed at one point after the other, resumed every time, and compared at its end: what
# one kill spoils is not mended by the next. NAME:N is the Nth time that a process passes it.
CHAINS = {
    "rollouts": ("rollout/sampled:3", "tool/called:3", "teacher/scored:2", "journal/appended:1"),
    "update": ("update/computed:1", "update/stepped:1", "metrics.jsonl/appended:2"),
    "publication": ("publish/saved:2", "publish/loaded:2"),
    "evaluation": ("eval/rolled:2", "evals.jsonl/appended:2"),
    "files of a checkpoint": ("checkpoint/weights:1", "checkpoint/optimizer:2"),
    # After moved_away the old one is gone from its place, and the new one is not yet there.
    "place of a checkpoint": (
        "latest/written:1",
        "latest/synced:1",
        "latest/moved_away:2",
        "latest/renamed:1",
    ),
    "kept checkpoint": ("000002/written", "000002/renamed"),
    "state": ("state.json/written:3", "state.json/synced:2", "state.json/renamed:2"),
    "old journals": ("000000.jsonl.zst/synced", "000001.jsonl.zst/renamed"),
    "model": ("model/weights", "model/written", "model/renamed", "state.json/written:2"),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projects") / "clinic"
    init_project(folder, template="clinic")
    held_out = (folder / "val.jsonl").read_text().splitlines(keepends=True)
    (folder / "val.jsonl").write_text("".join(held_out[:3]))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(rnow: ForkedCli, project: Path) -> Path:
    done = rnow("run", project, "--name", "uninterrupted", *SHORT)
    assert done.status == 0, done.output
    return project / "runs" / "uninterrupted"


@pytest.mark.parametrize("chain", CHAINS)
def test_killed_at_named_points_and_resumed_gives_the_same_bits(
    rnow: ForkedCli, project: Path, uninterrupted: Path, chain: str
) -> None:
    name = chain.replace(" ", "-")
    for point in CHAINS[chain]:
        killed = rnow("run", project, "--name", name, *SHORT, RNOW_KILL_AT=point)
        assert killed.status == -9, f"{point} was never passed:\n{killed.output}"
    resumed = rnow("run", project, "--name", name, *SHORT)
    assert resumed.status == 0, resumed.output
    assert_same_run(uninterrupted, project / "runs" / name, num_steps=NUM_STEPS)


def test_a_kill_in_mid_line_costs_that_one_rollout(
    rnow: ForkedCli, project: Path, uninterrupted: Path
) -> None:
    words = ("run", project, "--name", "torn", *SHORT)
    assert rnow(*words, RNOW_KILL_AT="journal/appended:2").status == -9
    run = project / "runs" / "torn"
    journal = run / "trajectories" / "000000.jsonl"
    journal.write_bytes(journal.read_bytes()[:-100])
    assert rnow(*words).status == 0
    assert_same_run(uninterrupted, run, num_steps=NUM_STEPS)
