"""What trajectories add up to."""

from dataclasses import replace

import pytest
from scored import make_scored

from rnow.records import RolloutId
from rnow.reports.statistics import Statistics, host_of


def test_two_trajectories() -> None:
    found = Statistics()
    for number in range(2):
        found.add(make_scored(RolloutId(0, number, 0)), [1, 2, 3, 4])
    assert found.num == 2
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
    assert list(found.means("position")) == ["0", "1", "2"]  # the last two stand together
    assert found.means("position")["2"] == pytest.approx(17.75 / 2, abs=1e-4)


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
