"""What a run was to take, beside what it has taken."""

import dataclasses
from typing import Any

from rnow.reports.evidence import Evidence
from rnow.reports.planned import Compared, compare_plan


def item(value: float, basis: str = "assumed") -> dict[str, Any]:
    return {"value": value, "basis": basis}


PLAN = {
    "steps": item(4, "from the settings"),
    "rollouts": item(40, "from the settings"),
    "tokens_out": item(1000),
    "tokens_in": item(8000),
    "step_s": item(2.0),
    "total_s": item(100.0),
    "disk_bytes": item(3e6),
    "journal_bytes": None,
}
LINE = {
    "rollout/trajectories": 10,
    "tokens/action": 200.0,
    "tokens/total": 2200.0,
    "time/step": 25.0,
    "time/eval": 22.0,
}
RUN = Evidence(
    name="run",
    config={},
    state={},
    metrics=(LINE, {**LINE, "time/step": 3.0, "time/eval": 0.0}),
    evaluations=(),
    plan=PLAN,
    disk={"disk_bytes": 6_000_000, "journal_bytes": 5},
)


def row(name: str, planned: str, so_far: str, share: float, basis: str = "assumed") -> Compared:
    return Compared(name=name, planned=planned, so_far=so_far, share=share, basis=basis)


def test_what_is_done_is_held_against_its_part_of_the_plan() -> None:
    assert compare_plan(RUN, held_out_tokens=(100.0, 400.0)) == [
        row("steps", "4", "2", 1.0, "from the settings"),
        row("rollouts", "40", "20", 1.0, "from the settings"),
        row("tokens sampled", "1,000", "500", 1.0),
        row("tokens read", "8,000", "4,400", 1.1),
        row("time a step, without evaluations", "2.0 s", "3.0 s", 1.5),
        row("time of all steps", "1 min 40 s", "28.0 s", 0.56),
        row("disk: checkpoints, weights, model", "3.0 MB", "6.0 MB", 2.0),
    ]


def test_before_the_first_step_there_is_no_time_a_step_and_no_share() -> None:
    rows = compare_plan(dataclasses.replace(RUN, metrics=()))
    assert {one.name: one.share for one in rows if one.name.startswith(("steps", "time"))} == {
        "steps": None,
        "time of all steps": None,
    }


def test_a_run_without_a_plan_or_with_another_versions_compares_nothing() -> None:
    for plan in ({}, {"steps": 4}, {"steps": {"value": "four"}}, {"steps": item(0)}):
        assert compare_plan(dataclasses.replace(RUN, plan=plan)) == []
