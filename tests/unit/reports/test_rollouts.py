"""A run's rollouts with what is kept beside their journals."""

from pathlib import Path

import numpy as np
import pytest
from scored import make_scored

from rnow.records import RolloutId
from rnow.reports.rollouts import MAX_EVALUATIONS, MAX_STEPS, evaluations_read, read_rollouts
from rnow.reports.rollouts import steps_read as steps_of
from rnow.runs.beside import write_beside
from rnow.runs.folder import RunDirectory
from rnow.runs.journal import Journal, trajectory_to_json


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path)
    journal = Journal(run.trajectories(3))
    for prompt in range(3):
        journal.append(make_scored(RolloutId(3, prompt, 0)), right=[True, False, None][prompt])
    journal.close()
    names = [{"prompt": prompt, "rollout": 0} for prompt in range(3)]
    logprobs = [-0.5, -0.5, -0.5, -0.5]
    # The last line is of another rollout of that name, longer by a token.
    lines = [{**names[0], "logprobs": logprobs}, {**names[2], "logprobs": [*logprobs, 0.0]}]
    write_beside(run.beside("update", 3), lines)
    write_beside(
        run.beside("favourites", 3),
        [{**names[0], "ids": [[9], [2], [6], [2]], "logprobs": [[-1.0]] * 4}],
    )
    said = make_scored(RolloutId(-1, 7, 0)).trajectory
    grade = {"right": False, "extracted": "A", "expected": "B"}
    write_beside(run.beside("eval", 3), [{**trajectory_to_json(said), **grade}])
    return run


def test_each_has_what_was_kept_of_it(run: RunDirectory) -> None:
    first, second, third, held_out = read_rollouts(run)
    assert [one.name for one in (first, second, third, held_out)] == [
        "3.0.0",
        "3.1.0",
        "3.2.0",
        "eval-3.7.0",
    ]
    assert [one.right for one in (first, second, third, held_out)] == [True, False, None, False]
    assert first.student is not None
    assert first.student.tolist() == [-0.5] * 4
    assert first.favourite_ids is not None
    assert first.favourite_ids.tolist() == [[9], [2], [6], [2]]
    assert [one.student is None for one in (second, third, held_out)] == [True] * 3
    assert [one.favourite_ids is None for one in (second, third, held_out)] == [True] * 3
    assert (held_out.extracted, held_out.expected, held_out.teacher) == ("A", "B", None)
    assert first.gaps is not None
    np.testing.assert_allclose(first.gaps, [1.5, 0.2, -0.49997, 29.75], atol=1e-5)


def test_of_many_steps_and_evaluations_some_are_read_first_and_last_among_them(
    run: RunDirectory,
) -> None:
    for step in range(200):
        run.trajectories(step).touch()
        write_beside(run.beside("eval", step), [])
    steps = [int(path.stem) for path in steps_of(run)]
    assert (len(steps), steps[0], steps[-1]) == (MAX_STEPS, 0, 199)
    names = [path.name for path in evaluations_read(run)]
    assert (len(names), names[0], names[-1]) == (
        MAX_EVALUATIONS,
        "eval-000000.jsonl.zst",
        "eval-000199.jsonl.zst",
    )
