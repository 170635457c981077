"""What trajectories add up to."""

from dataclasses import replace

import numpy as np
import pytest
from builders import make_trajectory
from scored import make_scored

from rnow.records import RolloutId
from rnow.reports.rollouts import Rollout
from rnow.reports.statistics import Statistics, host_of


def rollout(number: int) -> Rollout:
    one = make_scored(RolloutId(0, number, 0))
    teacher = one.teacher_logprobs[one.trajectory.action_mask]
    return Rollout(trajectory=one.trajectory, right=number == 0, teacher=teacher)


def test_spans_of_positions_stand_in_their_order() -> None:
    found = Statistics()
    mask = [0, *[1] * 100]
    teacher = np.zeros(100, dtype=np.float32)
    found.add(Rollout(trajectory=make_trajectory(mask, mask), teacher=teacher), [3] * 100)
    spans = ["0", "1", "2–3", "4–7", "8–15", "16–31", "32–63", "64–127"]
    assert list(found.means("position")) == spans
    assert set(found.means("position").values()) == {-0.5}


def test_two_rollouts_and_a_held_out_one() -> None:
    found = Statistics()
    for number in range(2):
        found.add(rollout(number), [1, 2, 3, 4])
    found.add(Rollout(trajectory=rollout(2).trajectory, held_out=5, right=True), [])
    assert found.num == 2
    assert found.held_out == {"rollouts": 1, "sampled": 4, "read": 3}
    assert found.ends == {"max_turns": 2}
    assert found.call_rows() == [["browse", "", "2", "2", "0", "0", "0", "0.25"]]
    # gaps: −0.1 + 2, −1/3 + 0.7, 3e-5, −12.5 + 30.25
    assert found.means("turn") == {
        "0": pytest.approx((1.9 + 0.366667) / 2, abs=1e-5),
        "1": pytest.approx(17.75 / 2, abs=1e-4),
    }
    assert found.means("kind") == {
        "tool call": pytest.approx(1.9),
        "arguments": pytest.approx(0.366667, abs=1e-5),
        "answer": pytest.approx(0.0, abs=1e-4),
        "stop": pytest.approx(17.75),
    }
    assert list(found.means("position")) == ["0", "1", "2–3"]
    assert found.means("position")["2–3"] == pytest.approx(17.75 / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "host"),
    [
        ('{"url": "https://Clinic.test:8/a"}', "clinic.test"),
        ('{"page": 2, "to": "http://b.test"}', "b.test"),
        ('{"url": "clinic.test"}', ""),
        ('["https://a.test"]', ""),
        ('{"url": "http://[::1"}', ""),
        ("[" * 100_000, ""),
        ("no JSON", ""),
    ],
)
def test_the_host_of_a_call(arguments: str, host: str) -> None:
    (call,) = make_scored(RolloutId(0, 0, 0)).trajectory.tool_calls
    assert host_of(replace(call, arguments=arguments)) == host
