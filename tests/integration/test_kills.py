"""A run that is killed by SIGKILL anywhere, and resumed, gives the bits of one that was not."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from short_runs import ForkedCli, assert_same_run, metrics, trajectories

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

# With two steps under way. The next one's rollouts have just begun; they go on as a checkpoint is
# put in place; the weights before the last update are published once more, and the newest beside
# them; a step has rolled out and may still be scored; all are scored before, and beside, an update.
TWO_STEPS = (
    "ahead/begun:2",
    "latest/renamed:1",
    "former/published:1",
    "ahead/published:1",
    "ahead/rolled:1",
    "ahead/whole:1",
    "ahead/whole:2",
)
ALL_CHAINS = [(0, chain) for chain in CHAINS] + [(1, chain) for chain in (*CHAINS, "two steps")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("projects") / "clinic"
    init_project(folder, template="clinic")
    held_out = (folder / "val.jsonl").read_text().splitlines(keepends=True)
    (folder / "val.jsonl").write_text("".join(held_out[:3]))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(rnow: ForkedCli, project: Path) -> Callable[[int], Path]:
    """A whole run by its lag."""

    @cache
    def run(lag: int) -> Path:
        done = rnow("run", project, "--name", f"uninterrupted-{lag}", *short(lag))
        assert done.status == 0, done.output
        return project / "runs" / f"uninterrupted-{lag}"

    return run


def short(lag: int) -> tuple[str, ...]:
    return (*SHORT, f"trainer.max_policy_lag={lag}")


@pytest.mark.parametrize(("lag", "chain"), ALL_CHAINS)
def test_killed_at_named_points_and_resumed_gives_the_same_bits(
    rnow: ForkedCli,
    project: Path,
    uninterrupted: Callable[[int], Path],
    lag: int,
    chain: str,
) -> None:
    name = f"{chain.replace(' ', '-')}-{lag}"
    words = ("run", project, "--name", name, *short(lag))
    for point in CHAINS.get(chain, TWO_STEPS):
        killed = rnow(*words, RNOW_KILL_AT=point)
        assert killed.status == -9, f"{point} was never passed:\n{killed.output}"
    resumed = rnow(*words)
    assert resumed.status == 0, resumed.output
    assert_same_run(uninterrupted(lag), project / "runs" / name, num_steps=NUM_STEPS)


@pytest.mark.parametrize(("lag", "step", "point"), [(0, 0, 2), (1, 1, 6)])
def test_a_kill_in_mid_line_costs_that_one_rollout(
    rnow: ForkedCli,
    project: Path,
    uninterrupted: Callable[[int], Path],
    lag: int,
    step: int,
    point: int,
) -> None:
    words = ("run", project, "--name", f"torn-{lag}", *short(lag))
    assert rnow(*words, RNOW_KILL_AT=f"journal/appended:{point}").status == -9
    run = project / "runs" / f"torn-{lag}"
    journal = run / "trajectories" / f"{step:06d}.jsonl"
    journal.write_bytes(journal.read_bytes()[:-100])
    assert rnow(*words).status == 0
    assert_same_run(uninterrupted(lag), run, num_steps=NUM_STEPS)


def test_each_step_is_sampled_from_the_version_that_its_lag_says(
    uninterrupted: Callable[[int], Path],
) -> None:
    versions = {
        lag: [
            {
                int(version)
                for one in trajectories(uninterrupted(lag), step)
                for version in one.trajectory.policy_version[one.trajectory.action_mask]
            }
            for step in range(NUM_STEPS)
        ]
        for lag in (0, 1)
    }
    assert versions == {0: [{0}, {1}, {2}], 1: [{0}, {0}, {1}]}
    figures = metrics(uninterrupted(1))
    # Engine and trainer agree on equal weights, however far the policy has gone since.
    assert all(line["mismatch_kl"] < 1e-9 for line in figures)
    assert ["staleness_kl" in line for line in figures] == [False, True, True]
    assert all(line["staleness_kl"] > 1e-6 for line in figures[1:])
