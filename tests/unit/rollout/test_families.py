"""Real templates × {no tools, tools}: what `rnow check` says of one, its rollouts bear out."""

import json
from pathlib import Path
from typing import Any

import pytest
from builders import real_template, real_templates, template_folder
from scripted_engine import ScriptedEngine
from scripted_tools import ScriptedTools
from written_turns import answer_turn, call_turn

from rnow.chat.conversation import conversation
from rnow.chat.template import ChatTemplate
from rnow.commands.check.models import check_chat
from rnow.commands.check.point import Outcome
from rnow.config.load import load_config
from rnow.errors import TemplateError
from rnow.records import EndReason, Prompt, RolloutId, ToolOutcome, Trajectory
from rnow.rollout.attempt import Attempt, run_rollout
from rnow.rollout.environment import load_chat

CONFIG = """\
data: {batch_size: 1}
model: {path: student}
teacher: {path: student}
rollout: {max_context_window: 8192, max_turns: TURNS}
trainer: {num_epochs: 1}
"""
PROMPT = Prompt(
    index=0, line=1, messages=({"role": "user", "content": "Which company?"},), tools=None
)
REFUSED_ALTOGETHER = {"idefics3", "llava_next", "smolvlm"}
REFUSED_WITH_TOOLS = {
    *REFUSED_ALTOGETHER,
    *("cohere", "cohere2", "gemma", "gemma3", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl"),
    *("deepseek_r1_distill", "deepseekv3"),
}


def browse(url: str, page: int = 1) -> str:
    """Read a page."""
    return f"{url} says <|im_end|> on page {page}"


async def roll(chat: ChatTemplate, loaded: Any, tools: ScriptedTools | None) -> Trajectory:
    """Roll out a call, where there are tools, and an answer, both as the template writes them."""
    messages: list[Any] = list(PROMPT.messages)
    schemas = () if tools is None else tools.schemas
    called = [("browse", {"url": "http://clinic.test/", "page": 2})]
    turns = [] if tools is None else [call_turn(chat, messages, called, schemas)]
    turns.append(answer_turn(chat, messages, "Acme.", schemas))
    return await run_rollout(
        Attempt(prompt=PROMPT, id=RolloutId(0, 0, 0), policy_version=0),
        engine=ScriptedEngine(turns),
        chat=chat,
        tools=tools,
        limits=loaded.config.rollout,
        run_seed=0,
    )


@pytest.mark.parametrize("with_tools", [False, True], ids=["no tools", "tools"])
@pytest.mark.parametrize("name", real_templates())
async def test_what_check_says_of_a_template_its_rollouts_bear_out(
    tmp_path: Path, name: str, with_tools: bool
) -> None:
    template_folder(tmp_path / "student", real_template(f"{name}.jinja"))
    (tmp_path / "config.yml").write_text(CONFIG.replace("TURNS", "3" if with_tools else "1"))
    loaded = load_config(tmp_path)
    tools = ScriptedTools({"browse": browse}) if with_tools else None
    schemas = () if tools is None else tools.schemas
    template, _ = check_chat(loaded, tmp_path, schemas=schemas, files={"train.jsonl": [PROMPT]})
    is_refused = name in (REFUSED_WITH_TOOLS if with_tools else REFUSED_ALTOGETHER)
    assert (template.outcome == Outcome.PROBLEM) == is_refused
    if is_refused:
        return
    chat = load_chat(loaded.config, tmp_path, student=tmp_path / "student")
    trajectory = await roll(chat, loaded, tools)
    assert trajectory.end_reason == EndReason.ANSWER
    calls = [(c.name, json.loads(c.arguments), c.outcome) for c in trajectory.tool_calls]
    asked = ("browse", {"url": "http://clinic.test/", "page": 2}, ToolOutcome.OK)
    assert calls == ([asked] if with_tools else [])
    said = conversation(PROMPT, trajectory, chat, include_thinking=False)[-1]
    assert said["content"] == "Acme."


@pytest.mark.parametrize("name", sorted(REFUSED_WITH_TOOLS - REFUSED_ALTOGETHER))
def test_what_check_refuses_a_run_refuses_with_the_same_words(tmp_path: Path, name: str) -> None:
    from rnow.chat.bridge_check import check_template

    template_folder(tmp_path / "student", real_template(f"{name}.jinja"))
    (tmp_path / "config.yml").write_text(CONFIG.replace("TURNS", "3"))
    loaded = load_config(tmp_path)
    tools = ScriptedTools({"browse": browse})
    template, _ = check_chat(
        loaded, tmp_path, schemas=tools.schemas, files={"train.jsonl": [PROMPT]}
    )
    chat = load_chat(loaded.config, tmp_path, student=tmp_path / "student")
    with pytest.raises(TemplateError) as caught:
        check_template(chat, PROMPT.messages, tools.schemas, limits=loaded.config.rollout)
    (problem,) = template.problems
    assert problem.message == str(caught.value)
