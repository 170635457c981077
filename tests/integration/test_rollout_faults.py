"""Tools that misbehave in every way, in a real worker, within a real rollout: it goes on."""

from pathlib import Path

import pytest
from builders import tokenizer_folder
from scripted_engine import ScriptedEngine

from rnow.browser.settings import BrowserSettings
from rnow.chat.template import ChatTemplate
from rnow.config.settings import RolloutSettings
from rnow.engines.base import SampleRequest
from rnow.records import EndReason, Prompt, RolloutId, ToolOutcome
from rnow.rollout.attempt import Attempt, run_rollout
from rnow.tools.pool import ToolPool
from rnow.tools.settings import WorkerSettings
from rnow.training.metrics import rollout_metrics

TOOLS = '''
import os
import time

from rnow.core import tool


@tool
def hang() -> str:
    """Never answer."""
    while True:
        time.sleep(0.05)


@tool
def fail() -> str:
    """Raise."""
    raise RuntimeError("the site is down")


@tool
def flood() -> str:
    """Return 5 MB."""
    return "x" * 5_000_000


@tool
def leave() -> str:
    """End the process."""
    os._exit(7)


@tool
def add(a: int, b: int) -> int:
    """Add."""
    return a + b
'''

CALLS = [
    '{"name": "hang", "arguments": {}}',
    '{"name": "fail", "arguments": {}}',
    '{"name": "flood", "arguments": {}}',
    '{"name": "leave", "arguments": {}}',
    '{"name": "nothing", "arguments": {}}',
    '{"name": "add", "arguments": {"a": "two"',
    '{"name": "add", "arguments": {"a": 2, "b": 3}}',
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tools.py").write_text(TOOLS)
    tokenizer_folder(tmp_path / "model", "qwen3")
    return tmp_path


async def test_a_rollout_survives_every_kind_of_tool_and_counts_it(project: Path) -> None:
    chat = ChatTemplate.load(project / "model")

    def speak(request: SampleRequest, turn: int) -> list[int]:
        text = f"<tool_call>\n{CALLS[turn]}\n</tool_call>" if turn < len(CALLS) else "five"
        return [*chat.encode(text), chat.end_of_turn_id]

    settings = WorkerSettings(
        project_dir=project,
        tool_timeout_s=6.0,
        max_tool_response=200,
        max_tool_response_chars=None,
        workers=1,
        concurrency=8,
        env_names=(),
        tokenizer_file=project / "model" / "tokenizer.json",
        browser=BrowserSettings(),
        log_file=project / "tools.log",
        grace_s=0.5,
    )
    question = {"role": "user", "content": "2 + 3?"}
    prompt = Prompt(index=0, line=1, messages=(question,), tools=None)
    async with ToolPool(settings) as pool:
        trajectory = await run_rollout(
            Attempt(prompt=prompt, id=RolloutId(0, 0, 0), policy_version=0),
            engine=ScriptedEngine(speak),
            chat=chat,
            tools=pool,
            limits=RolloutSettings(
                max_turns=9,
                max_tokens=200,
                max_context_window=8000,
                termination_policy="last_tool",
                rollout_timeout=60.0,
            ),
            run_seed=0,
        )
        assert pool.num_replaced == 2  # the one that hung and the one that left
    assert trajectory.end_reason is EndReason.ANSWER
    outcomes = [turn.tool_calls[0].outcome for turn in trajectory.turns[:-1]]
    assert outcomes == [
        ToolOutcome.TIMEOUT,
        ToolOutcome.ERROR,
        ToolOutcome.OK,
        ToolOutcome.ERROR,
        ToolOutcome.MODEL_ERROR,
        ToolOutcome.MODEL_ERROR,
        ToolOutcome.OK,
    ]
    assert trajectory.turns[2].tool_calls[0].truncated
    assert len(chat.encode(trajectory.turns[2].tool_calls[0].text)) <= 200
    assert trajectory.turns[6].tool_calls[0].text == "5"
    metrics = rollout_metrics([trajectory])
    counted = {name: metrics[f"tool/{name}"] for name in ("calls", "ok", "error", "timeout")}
    assert counted == {"calls": 7, "ok": 2, "error": 2, "timeout": 1}
    assert metrics["tool/model_error"] == 2
    assert metrics["tool/truncated"] == 1
    assert metrics["tokens/drift"] == 0
