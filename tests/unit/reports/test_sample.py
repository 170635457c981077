"""Which trajectories are shown, and that nothing of them is obeyed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scored import make_scored

from rnow.records import EndReason, RolloutId, ScoredTrajectory, ToolOutcome
from rnow.reports.sample import MAX_TEXT, NUM_EACH, Sample, cut, fit, mean_gap, show, visible


def scored(
    number: int, *, gap: float = 0.0, fails: bool = False, answers: bool = True
) -> ScoredTrajectory:
    """A trajectory whose mean gap is `gap`."""
    one = make_scored(RolloutId(0, number, 0))
    first, last = one.trajectory.turns
    if fails:
        call = replace(first.tool_calls[0], outcome=ToolOutcome.ERROR)
        first = replace(first, tool_calls=(call,))
    trajectory = replace(
        one.trajectory,
        turns=(first, last),
        end_reason=EndReason.ANSWER if answers else EndReason.TIMEOUT,
    )
    teacher = trajectory.sampler_logprobs - np.float32(gap)
    return ScoredTrajectory(trajectory=trajectory, teacher_logprobs=teacher)


def test_the_gap_is_the_samplers_less_the_teachers() -> None:
    assert mean_gap(scored(0, gap=0.5)) == pytest.approx(0.5, abs=1e-6)


def test_the_worst_the_failed_and_the_unanswered_are_among_the_chosen() -> None:
    sample = Sample()
    for number in range(1000):
        sample.add(scored(number, gap=number / 100, fails=number == 3, answers=number != 5))
    why = {one.trajectory.id.prompt: reasons for one, reasons in sample.chosen()}
    assert [n for n, reasons in why.items() if "worst gap" in reasons] == [*range(999, 959, -1)]
    assert [n for n, reasons in why.items() if "failed tool" in reasons] == [3]
    assert [n for n, reasons in why.items() if "no answer" in reasons] == [5]
    assert sum("even" in reasons for reasons in why.values()) == NUM_EACH


def test_the_choice_does_not_depend_on_the_order() -> None:
    ids = []
    for numbers in (range(200), range(199, -1, -1)):
        sample = Sample()
        for number in numbers:
            sample.add(scored(number, gap=number % 7))
        ids.append([one.trajectory.id for one, _ in sample.chosen()])
    assert ids[0] == ids[1]


def test_it_stays_within_its_room() -> None:
    sample = Sample()
    for number in range(100):
        sample.add(scored(number))
    whole = fit(sample, lambda one: show(one, None, None), 10**9)
    size = max(len(json.dumps(one)) for one in whole)
    part = fit(sample, lambda one: show(one, None, None), 10 * size)
    assert 10 <= len(part) < len(whole)
    assert sum(len(json.dumps(one)) for one in part) <= 10 * size
    assert [one["entry"] for one in part] == sorted(one["entry"] for one in part)


def test_a_trajectory_as_the_page_reads_it() -> None:
    shown = show(make_scored(RolloutId(2, 5, 1)), None, None)
    assert shown == {
        "id": "2.5.1",
        "entry": 5,
        "end": "max_turns",
        "turns": 2,
        "gap": pytest.approx(5.004, abs=1e-3),
        "failed": False,
        "parts": [
            {"text": "#7 #8 "},
            {"turn": 0, "t": ["#9 ", "#2 "], "s": [-0.1, -0.333], "q": [-2.0, -0.7],
             "k": [3, 4], "stop": "stop"},
            {"tool": "browse", "arguments": '{"url": "…"}', "outcome": "ok",
             "text": "a page⟨U+2028⟩with a line separator"},
            {"turn": 1, "t": ["#6 ", "#2 "], "s": [-0.0, -12.5], "q": [-0.0, -30.25],
             "k": [3, 3], "stop": "length"},
        ],
    }  # fmt: skip


def test_what_would_be_obeyed_is_written_out() -> None:
    assert visible("a\u202eb\x1b[2J\r\ud800\u200b\ufeff\x9b") == (
        "a⟨U+202E⟩b⟨U+001B⟩[2J⟨U+000D⟩⟨U+D800⟩⟨U+200B⟩⟨U+FEFF⟩⟨U+009B⟩"
    )
    assert visible("plain é 中 \t\n 😀 <script>") == "plain é 中 \t\n 😀 <script>"


def test_a_line_of_a_megabyte_is_cut() -> None:
    assert cut("x" * 1_000_000) == "x" * MAX_TEXT + f" … and {1_000_000 - MAX_TEXT} more characters"
    assert cut("x" * MAX_TEXT) == "x" * MAX_TEXT
