"""What tests and benches of many rollouts share: a project with an instant tool, and its steps.

Real: ledger, chat template, run_rollout, Collector with its journal, VllmEngine, a tool worker in
its own process. Not real: whatever the server is; and nothing scores, which is not measured here.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

import numpy as np

from rnow.browser.settings import BrowserSettings
from rnow.chat.template import ChatTemplate
from rnow.config.settings import RolloutSettings
from rnow.engines.base import Engine
from rnow.records import Batch, Prompt, ScoredTrajectory, Trajectory
from rnow.rollout.attempt import Attempt, run_rollout
from rnow.runs.folder import RunDirectory
from rnow.tools.pool import ToolPool
from rnow.tools.settings import WorkerSettings
from rnow.training.collect import Collector

NUM_TURNS = 3
TOOL_NAME = "look"
STUDENT = resources.files("rnow") / "templates" / "clinic" / "models" / "student"
# 53 tokens of the clinic's tokenizer with the template's text around them.
_TOOLS_FILE = '''
from rnow.core import tool


@tool
def look(key: str) -> str:
    """Look something up."""
    return "The drug was tested by the company. " * 2
'''


@asynccontextmanager
async def instant_tools(folder: Path) -> AsyncIterator[ToolPool]:
    """Start one worker whose only tool answers at once."""
    (folder / "tools.py").write_text(_TOOLS_FILE)
    settings = WorkerSettings(
        project_dir=folder,
        tool_timeout_s=60.0,
        max_tool_response=None,
        max_tool_response_chars=None,
        workers=1,
        concurrency=32,
        env_names=(),
        tokenizer_file=None,
        browser=BrowserSettings(),
        log_file=folder / "tools.log",
    )
    async with ToolPool(settings) as pool:
        yield pool


def calling_ids(chat: ChatTemplate, num_tokens: int) -> list[int]:
    """Return a turn of that length which calls the tool, its end of turn included."""
    for num_digits in range(1, num_tokens):
        call = f'{{"name": "{TOOL_NAME}", "arguments": {{"key": "{"7" * num_digits}"}}}}'
        ids = [*chat.encode(f"<tool_call>\n{call}\n</tool_call>"), chat.end_of_turn_id]
        if len(ids) == num_tokens:
            return ids
    raise AssertionError(f"no call has {num_tokens} tokens")


def make_prompts(chat: ChatTemplate, tools: ToolPool, num: int, *, num_tokens: int) -> list[Prompt]:
    """Return prompts of about `num_tokens` tokens, the tool's description included."""
    text = "Which company runs the trial of the drug? "
    room = num_tokens - len(chat.render_prompt([{"role": "user", "content": ""}], tools.schemas))
    question = text * (room // len(chat.encode(text)))
    return [
        Prompt(
            index=index,
            line=index + 1,
            messages=({"role": "user", "content": f"{index}. {question}"},),
            tools=None,
        )
        for index in range(num)
    ]


class Rolling:
    """Collects steps, each in a run folder of its own."""

    def __init__(
        self, engine: Engine, chat: ChatTemplate, tools: ToolPool, folder: Path, *, max_tokens: int
    ) -> None:
        self._engine, self._chat, self._tools, self._folder = engine, chat, tools, folder
        self._limits = RolloutSettings(
            max_turns=NUM_TURNS,
            max_tokens=max_tokens,
            max_context_window=1024,
            termination_policy="last_tool",
            rollout_timeout=600.0,
        )
        self._num_steps = 0
        self.journal = folder  # of the last step

    async def step(self, prompts: Sequence[Prompt], *, group_size: int) -> Batch:
        """Roll out all prompts of a step at the same time."""
        run = RunDirectory(self._folder / f"run-{self._num_steps}")
        self._num_steps += 1
        run.open()
        self.journal = run.trajectories(0)
        num_rollouts = len(prompts) * group_size
        collector = Collector(self._roll, _score, run=run, concurrency=num_rollouts, max_dropped=0)
        try:
            collected = await collector.collect(
                0, prompts, group_size=group_size, on_scored=lambda: None
            )
        finally:
            run.close()
        assert len(collected.batch.scored) == num_rollouts
        return collected.batch

    async def _roll(self, attempt: Attempt) -> Trajectory:
        return await run_rollout(
            attempt,
            engine=self._engine,
            chat=self._chat,
            tools=self._tools,
            limits=self._limits,
            run_seed=0,
        )


async def _score(trajectory: Trajectory) -> ScoredTrajectory:
    zeros = np.zeros(trajectory.num_tokens, dtype=np.float32)
    return ScoredTrajectory(
        trajectory=trajectory,
        teacher_logprobs=np.where(trajectory.action_mask, zeros, np.float32("nan")),
    )
