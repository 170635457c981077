"""Which trajectories are shown, and that nothing of them is obeyed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scored import make_scored

from rnow.records import EndReason, RolloutId, ToolOutcome
from rnow.reports.rollouts import Rollout
from rnow.reports.sample import (
    MAX_TEXT,
    NUM_EACH,
    NUM_HELD_OUT,
    Sample,
    cut,
    fit,
    show,
    visible,
)


def scored(
    number: int,
    *,
    gap: float = 0.0,
    fails: bool = False,
    answers: bool = True,
    right: bool | None = None,
    favourites: bool = False,
) -> Rollout:
    """A rollout whose mean gap is `gap`."""
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
    teacher = trajectory.sampler_logprobs[trajectory.action_mask] - np.float32(gap)
    ids = np.zeros((len(teacher), 1), dtype=np.int32) if favourites else None
    return Rollout(trajectory=trajectory, right=right, teacher=teacher, favourite_ids=ids)


def held_out(number: int, *, after: int, right: bool) -> Rollout:
    trajectory = make_scored(RolloutId(-1, number, 0)).trajectory
    return Rollout(trajectory=trajectory, held_out=after, right=right)


def test_the_gap_is_the_students_less_the_teachers_the_samplers_where_that_was_not_kept() -> None:
    one = scored(0, gap=0.5)
    assert one.mean_gap == pytest.approx(0.5, abs=1e-6)
    assert one.teacher is not None
    assert replace(one, student=one.teacher + 0.25).mean_gap == pytest.approx(0.25, abs=1e-6)
    assert held_out(0, after=5, right=True).mean_gap is None


def test_the_worst_the_failed_and_the_unanswered_are_among_the_chosen() -> None:
    sample = Sample()
    for number in range(1000):
        sample.add(
            scored(
                number,
                gap=number / 100,
                fails=number == 3,
                answers=number != 5,
                right=None if number % 2 else number != 8,
                favourites=number == 9,
            )
        )
    why = {one.trajectory.id.prompt: reasons for one, reasons in sample.chosen()}
    assert [n for n, reasons in why.items() if "worst gap" in reasons] == [*range(999, 959, -1)]
    assert [n for n, reasons in why.items() if "failed tool" in reasons] == [3]
    assert [n for n, reasons in why.items() if "no answer" in reasons] == [5]
    assert [n for n, reasons in why.items() if "wrong answer" in reasons] == [8]
    assert [n for n, reasons in why.items() if "favourites" in reasons] == [9]
    assert sum("even" in reasons for reasons in why.values()) == NUM_EACH


def test_held_out_answers_are_of_the_same_prompts_in_each_evaluation() -> None:
    sample = Sample()
    for after in (0, 10):
        for number in range(200):
            sample.add(held_out(number, after=after, right=after == 10))
    chosen = [(one.held_out, one.trajectory.id.prompt, why) for one, why in sample.chosen()]
    wrong = {prompt for after, prompt, why in chosen if "held-out, wrong" in why}
    assert len(wrong) == NUM_HELD_OUT
    assert {after for after, _, why in chosen if "held-out, wrong" in why} == {0}
    both = [
        {prompt for after, prompt, why in chosen if after == each and "held-out" in why}
        for each in (0, 10)
    ]
    assert both[0] == both[1] != set()


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


def test_a_rollout_as_the_page_reads_it() -> None:
    one = make_scored(RolloutId(2, 5, 1))
    teacher = one.teacher_logprobs[one.trajectory.action_mask]
    favourites = np.array([[9, 4], [2, 4], [6, 4], [7, 4]], dtype=np.int32)
    rollout = Rollout(
        trajectory=one.trajectory,
        right=False,
        teacher=teacher,
        student=np.array([-0.2, -0.3, -0.4, -0.5], dtype=np.float32),
        favourite_ids=favourites,
        favourite_logprobs=np.array([[-0.1, -3]] * 4, dtype=np.float32),
    )
    assert show(rollout, None, None) == {
        "id": "2.5.1",
        "entry": 5,
        "held_out": None,
        "end": "max_turns",
        "turns": 2,
        "gap": pytest.approx(7.888, abs=1e-3),
        "repetition": 0.0,
        "failed": False,
        "right": False,
        "extracted": None,
        "expected": None,
        "parts": [
            {"text": "#7 #8 "},
            {"turn": 0, "t": ["#9 ", "#2 "], "s": [-0.1, -0.333], "p": [-0.2, -0.3],
             "q": [-2.0, -0.7], "k": [3, 4], "stop": "stop",
             "f": [[["#9 ", -0.1], ["#4 ", -3.0]], [["#2 ", -0.1], ["#4 ", -3.0]]]},
            {"tool": "browse", "arguments": '{"url": "…"}', "outcome": "ok",
             "text": "a page⟨U+2028⟩with a line separator"},
            {"turn": 1, "t": ["#6 ", "#2 "], "s": [-0.0, -12.5], "p": [-0.4, -0.5],
             "q": [-0.0, -30.25], "k": [3, 3], "stop": "length",
             "f": [[["#6 ", -0.1], ["#4 ", -3.0]], [["#7 ", -0.1], ["#4 ", -3.0]]]},
        ],
    }  # fmt: skip


def test_of_a_held_out_answer_the_teacher_is_not_known() -> None:
    one = replace(held_out(5, after=20, right=True), extracted="A\u202ecme", expected="Acme")
    shown = show(one, None, None)
    found = {key: shown[key] for key in ("id", "gap", "right", "extracted", "expected", "held_out")}
    assert found == {
        "id": "eval-20.5.0",
        "gap": None,
        "right": True,
        "extracted": "A⟨U+202E⟩cme",
        "expected": "Acme",
        "held_out": 20,
    }
    assert set(shown["parts"][1]) == {"turn", "t", "k", "s", "stop"}


def test_what_would_be_obeyed_is_written_out() -> None:
    assert visible("a\u202eb\x1b[2J\r\ud800\u200b\ufeff\x9b") == (
        "a⟨U+202E⟩b⟨U+001B⟩[2J⟨U+000D⟩⟨U+D800⟩⟨U+200B⟩⟨U+FEFF⟩⟨U+009B⟩"
    )
    assert visible("plain é 中 \t\n 😀 <script>") == "plain é 中 \t\n 😀 <script>"


def test_a_line_of_a_megabyte_is_cut() -> None:
    assert cut("x" * 1_000_000) == "x" * MAX_TEXT + f" … and {1_000_000 - MAX_TEXT} more characters"
    assert cut("x" * MAX_TEXT) == "x" * MAX_TEXT
