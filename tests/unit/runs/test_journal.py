import json
from pathlib import Path

import numpy as np
from scored import assert_same, make_scored

from rnow.records import RolloutId, ScoredTrajectory
from rnow.runs.journal import Journal, read_journal, scored_from_json, scored_to_json


def test_a_scored_trajectory_survives_json_bit_for_bit() -> None:
    scored = make_scored(RolloutId(4, 17, 3))
    assert_same(scored_from_json(json.loads(json.dumps(scored_to_json(scored)))), scored)


def test_every_float32_log_probability_survives_json_bit_for_bit() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        scored = make_scored(RolloutId(0, 0, 0))
        mask = scored.trajectory.action_mask
        values = scored.teacher_logprobs.copy()
        values[mask] = -random.exponential(5, size=int(mask.sum())).astype(np.float32)
        drawn = ScoredTrajectory(trajectory=scored.trajectory, teacher_logprobs=values)
        assert_same(scored_from_json(json.loads(json.dumps(scored_to_json(drawn)))), drawn)


def test_a_journal_gives_back_its_trajectories_in_the_order_of_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "trajectories" / "000002.jsonl"
    journal = Journal(path)
    for id in (RolloutId(2, 9, 0), RolloutId(2, 3, 1), RolloutId(2, 3, 0)):
        journal.append(make_scored(id, policy_version=2))
    journal.close()
    ids = [item.trajectory.id for item in read_journal(path)]
    assert ids == [RolloutId(2, 3, 0), RolloutId(2, 3, 1), RolloutId(2, 9, 0)]


def test_a_torn_line_is_passed_over_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "000000.jsonl"
    journal = Journal(path)
    journal.append(make_scored(RolloutId(0, 0, 0)))
    journal.append(make_scored(RolloutId(0, 1, 0)))
    journal.close()
    path.write_bytes(path.read_bytes()[:-40])  # the kill came in the middle of the second line
    again = Journal(path)
    again.append(make_scored(RolloutId(0, 2, 0)))
    again.close()
    ids = [item.trajectory.id for item in read_journal(path)]
    assert ids == [RolloutId(0, 0, 0), RolloutId(0, 2, 0)]


def test_trajectories_of_other_weights_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "000005.jsonl"
    journal = Journal(path)
    journal.append(make_scored(RolloutId(5, 0, 0), policy_version=5))
    journal.append(make_scored(RolloutId(5, 1, 0), policy_version=4))
    journal.close()
    ids = [item.trajectory.id for item in read_journal(path, policy_version=5)]
    assert ids == [RolloutId(5, 0, 0)]


def test_a_journal_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "none.jsonl") == ()
