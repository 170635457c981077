"""Whether the pace of sites holds a step up: with the project's own tools.py in a real worker."""

import json
from pathlib import Path

import pytest
from builders import read_prompts

from rnow.commands.check.site_pace import site_pace_problem
from rnow.config.load import load_config
from rnow.plan.costs import Costs, Estimate

CONFIG = """\
data: {batch_size: 8, group_size: 8}
trainer: {num_epochs: 1}
model: {path: student}
teacher: {path: teacher}
rollout: {max_turns: 10}
browser: {contact: me@example.org, allow_hosts: [a.test, b.test]}
"""
TOOLS = """\
from rnow.core import tool
from rnow import browser

browser.pace("b.test", interval_s=5.0)


@tool
async def browse(url: str) -> str:
    \"\"\"Read a page, as https://a.test/ or https://evil.test/.\"\"\"
    return await browser.read(url)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "config.yml").write_text(CONFIG)
    (tmp_path / "tools.py").write_text(TOOLS)
    question = "What says http://b.test/1, and http://b.test/2, and http://b.test/3?"
    entry = {"messages": [{"role": "user", "content": question}]}
    (tmp_path / "train.jsonl").write_text(json.dumps(entry))
    return tmp_path


def costs(step_s: float | None, *, basis: str = "a table") -> Costs:
    """Of ten steps of 64 rollouts."""

    def number(value: float, of: str = "the settings") -> Estimate:
        return Estimate(value=value, basis=of)

    return Costs(
        steps=number(10),
        rollouts=number(640),
        evaluations=number(0),
        tokens_out=number(1, "assumed"),
        tokens_in=number(1, "assumed"),
        disk_bytes=None,
        journal_bytes=number(1),
        step_s=None if step_s is None else number(step_s, basis),
        total_s=None,
        gpu_hours=None,
        bound_by=None,
        place="",
    )


def told(
    project: Path, step_s: float | None, *overrides: str, basis: str = "a table"
) -> str | None:
    loaded = load_config(project, overrides=overrides)
    files = {"train.jsonl": read_prompts(project / "train.jsonl").prompts}
    found = site_pace_problem(loaded, project, files, costs(step_s, basis=basis))
    assert found is None or found.severity == "warning"
    return None if found is None else found.message


def test_a_step_that_waits_for_sites_longer_than_for_all_else_is_told(project: Path) -> None:
    # 64 rollouts of 9 calls; of 4 URLs 3 are b.test's: 432 at one in 5 s.
    assert told(project, 359.0) == (
        "a step asks sites up to 576 times, 432 of them b.test, which is asked once in 5 s: "
        "36 min 00 s, and all else in a step takes 5 min 59 s (estimated); to train on kept "
        "pages: rnow corpus build, then browser.store_mode: replay"
    )


def test_a_slower_step_kept_pages_and_one_turn_wait_for_no_site(project: Path) -> None:
    assert told(project, 2161.0) is None
    assert told(project, 359.0, "browser.store_mode=replay") is None
    assert told(project, 359.0, "rollout.max_turns=1") is None
    assert told(project, None) is None


def test_steps_that_were_measured_are_believed(project: Path) -> None:
    assert told(project, 359.0, basis="assumed") is None
