import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from builders import make_trajectory, tokenizer_folder
from rich.console import Console

from rnow.chat.conversation import conversation, split_thinking
from rnow.chat.template import ChatTemplate
from rnow.commands.test.sample import Sample, make_folder, write_sample
from rnow.commands.test.tool_statistics import tool_statistics
from rnow.commands.test.view import Cuts, show_line, show_tools, show_transcript
from rnow.records import (
    EndReason,
    Prompt,
    RolloutId,
    StopReason,
    ToolCallRecord,
    ToolOutcome,
    Trajectory,
    Turn,
)
from rnow.tools.graders import Grade
from rnow.tools.rewards import NO_REWARDS, Rewards

PROMPT = Prompt(
    index=3,
    line=5,
    messages=({"role": "user", "content": "Which [red]drug[/red]?"},),
    tools=None,
    metadata={"expected_answer": "SABUM", "task_name": "ingredient"},
)
CALL = '<tool_call>\n{"name": "browse", "arguments": {"url": "x"}}\n</tool_call>'
EVERYTHING = Cuts(said=None, results=None)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    return ChatTemplate.load(tokenizer_folder(tmp_path_factory.mktemp("model"), "qwen3"))


def call(text: str, *, outcome: ToolOutcome = ToolOutcome.OK, **changes: object) -> ToolCallRecord:
    made = ToolCallRecord(
        name="browse",
        arguments='{"url": "x"}',
        outcome=outcome,
        text=text,
        duration_s=0.5,
        truncated=False,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def trajectory(chat: ChatTemplate, *turns: tuple[str, tuple[ToolCallRecord, ...]]) -> Trajectory:
    """What a student wrote that stopped by itself after each turn; one token of prompt."""
    ids, index, made = [1], [-1], []
    for number, (text, calls) in enumerate(turns):
        said = [*chat.encode(text), chat.end_of_turn_id]
        made.append(
            Turn(
                start=len(ids),
                end=len(ids) + len(said),
                stop_reason=StopReason.STOP,
                tool_calls=calls,
                duration_s=0.25,
            )
        )
        ids += said
        index += [number] * len(said)
    return make_trajectory(
        ids,
        np.array(index) >= 0,
        id=RolloutId(-2, 3, 0),
        turn_index=index,
        turns=tuple(made),
        duration_s=1.5,
    )


def sample(folder: Path, made: Trajectory | None, **changes: object) -> Sample:
    whole = Sample(
        number=1,
        prompt=PROMPT,
        trajectory=made,
        error=None if made else "server gone",
        grade=Grade(correct=False, extracted="BIFARO") if made else None,
        rewards=NO_REWARDS,
        file=folder / "sample_1.json",
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_a_file_begins_with_what_one_looks_at_first_and_ends_with_the_conversation(
    tmp_path: Path, chat: ChatTemplate
) -> None:
    made = trajectory(chat, (CALL, (call("ERROR http_404: no"),)), ("INGREDIENT: BIFARO", ()))
    rewards = Rewards(values={"accuracy": 0.5, "judge": "error"}, total=0.5, errors=("judge: x",))
    write_sample(sample(tmp_path, made, rewards=rewards), chat)
    written = json.loads((tmp_path / "sample_1.json").read_text())
    messages = written.pop("conversation")
    assert list(written.items()) == [
        ("id", "sample_1"),
        ("completed", True),
        ("success", True),
        ("total_reward", 0.5),
        ("rewards", {"accuracy": 0.5, "judge": "error"}),
        ("errors", ["judge: x"]),
        ("turns", 2),
        ("truncated", False),
        ("totalTokens", made.num_tokens),
        ("promptTokens", 1),
        ("completion", "INGREDIENT: BIFARO"),
        ("metadata", {"expected_answer": "SABUM", "task_name": "ingredient"}),
        ("entry", 3),
        ("line", 5),
        ("correct", False),
        ("error", None),
        (
            "tool_errors",
            [{"turn": 1, "tool": "browse", "code": "http_404", "text": "ERROR http_404: no"}],
        ),
        ("end_reason", "answer"),
        ("duration_s", 1.5),
    ]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["tool_calls"][0]["function"] == {
        "name": "browse",
        "arguments": '{"url": "x"}',
    }
    assert messages[2]["tool_call_id"] == messages[1]["tool_calls"][0]["id"]


def test_a_rollout_that_failed_has_a_file_that_says_so(tmp_path: Path, chat: ChatTemplate) -> None:
    write_sample(sample(tmp_path, None), chat)
    written = json.loads((tmp_path / "sample_1.json").read_text())
    assert (written["completed"], written["success"], written["error"]) == (
        "error",
        False,
        "server gone",
    )
    assert (written["correct"], written["total_reward"], written["turns"]) == (None, None, 0)
    assert written["conversation"] == [{"role": "user", "content": "Which [red]drug[/red]?"}]


@pytest.mark.parametrize(
    ("reason", "completed", "truncated"),
    [
        (EndReason.ANSWER, True, False),
        (EndReason.CONTEXT_FULL, True, True),
        (EndReason.MAX_TOKENS, True, True),
        (EndReason.TIMEOUT, False, False),
    ],
)
def test_a_rollout_is_truncated_by_its_window_and_incomplete_by_its_deadline(
    tmp_path: Path, chat: ChatTemplate, reason: EndReason, completed: bool, truncated: bool
) -> None:
    made = replace(trajectory(chat, ("x", ())), end_reason=reason)
    write_sample(sample(tmp_path, made), chat)
    written = json.loads((tmp_path / "sample_1.json").read_text())
    assert (written["completed"], written["truncated"]) == (completed, truncated)


def test_each_test_has_a_folder_of_the_next_number(tmp_path: Path) -> None:
    assert make_folder(tmp_path) == tmp_path / "rollouts" / "rollout_1"
    (tmp_path / "rollouts" / "rollout_41").mkdir()
    (tmp_path / "rollouts" / "rollout_old").mkdir()
    assert make_folder(tmp_path) == tmp_path / "rollouts" / "rollout_42"


def test_reward_functions_see_no_thinking_unless_it_is_asked_for(chat: ChatTemplate) -> None:
    made = trajectory(chat, ("<think>Hm.</think>\n\nINGREDIENT: BIFARO", ()))
    kept, left_out = (
        conversation(PROMPT, made, chat, include_thinking=include)[-1]["content"]
        for include in (True, False)
    )
    assert kept == "<think>Hm.</think>\n\nINGREDIENT: BIFARO"
    assert left_out == "INGREDIENT: BIFARO"


def test_thinking_is_found_where_one_of_its_tags_is_missing() -> None:
    assert split_thinking("<think>a</think>b") == ("a", "b")
    assert split_thinking("a</think>b") == ("a", "b")  # the template opened it
    assert split_thinking("<think>a") == ("a", "")  # cut in it
    assert split_thinking("a") == ("", "a")


def test_tools_are_counted_by_name_with_their_errors_by_code(chat: ChatTemplate) -> None:
    calls = (
        call("page", truncated=True, duration_s=2.0),
        call("ERROR http_404: no"),
        call("ERROR http_404: no"),
        call("<tool_error>late</tool_error>", outcome=ToolOutcome.TIMEOUT),
        call("<tool_error>bad</tool_error>", outcome=ToolOutcome.MODEL_ERROR, name=""),
    )
    made = trajectory(chat, (CALL, calls))
    assert {tool.name: tool.as_json() for tool in tool_statistics([made])} == {
        "browse": {
            "calls": 4,
            "errors": {"http_404": 2, "timeout": 1},
            "truncated": 1,
            "mean_s": 0.875,
            "max_s": 2.0,
        },
        "": {
            "calls": 1,
            "errors": {"model_error": 1},
            "truncated": 0,
            "mean_s": 0.5,
            "max_s": 0.5,
        },
    }


def shown(one: Sample, chat: ChatTemplate, cuts: Cuts) -> list[str]:
    console = Console(record=True, width=60, file=StringIO())
    show_transcript(one, chat, cuts=cuts, console=console)
    show_line(one, project=one.file.parent, console=console)
    show_tools([one], console)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_transcript_shows_turns_calls_and_results(tmp_path: Path, chat: ChatTemplate) -> None:
    first = f"<think>Which page?</think>\n\nLet me look.\n{CALL}"
    made = trajectory(chat, (first, (call("# Page\n\x1b[31mred"),)), ("INGREDIENT: BIFARO", ()))
    lines = shown(sample(tmp_path, made), chat, EVERYTHING)
    assert lines[:13] == [
        "Rollout 1 · entry 3 (line 5) " + "─" * 31,
        "user",
        # Nothing that a model or a page writes is markup, or moves the cursor.
        "  Which [red]drug[/red]?",
        f"turn 1 ({made.turns[0].end - 1} tokens, 0.2 s)",
        "  Which page?",
        "  Let me look.",
        '  → browse {"url": "x"}  ok, 0.50 s',
        "    │ # Page",
        "    │ ·[31mred",
        f"turn 2 ({made.turns[1].end - made.turns[1].start} tokens, 0.2 s)",
        "  INGREDIENT: BIFARO",
        f"Rollout 1: ✓ answer, 2 turns, 1 call, {made.num_tokens} tokens, 1.5 s, "
        "wrong (expected SABUM)  → sample_1.json",
        "┏━━━━━━━━┳━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━┳━━━━━━━┓",
    ]


def test_no_name_argument_or_error_is_markup_or_moves_the_cursor(
    tmp_path: Path, chat: ChatTemplate
) -> None:
    odd = call(
        "no such tool", outcome=ToolOutcome.MODEL_ERROR, name="[/b]\x1b", arguments="\x1b[2J"
    )
    bad = Rewards(values={"judge": "error"}, total=0.0, errors=("judge: ValueError: \x1b[2J",))
    lines = shown(sample(tmp_path, trajectory(chat, (CALL, (odd,))), rewards=bad), chat, EVERYTHING)
    assert "  → [/b]· ·[2J  model_error, 0.50 s" in lines
    assert "    ⚠ judge: ValueError: ·[2J" in lines
    assert any(line.startswith("│ [/b]· ") for line in lines)


def test_long_texts_are_cut_and_say_by_how_much(tmp_path: Path, chat: ChatTemplate) -> None:
    made = trajectory(chat, (CALL, (call("x" * 300),)))
    assert "    │ … 290 more characters; -v shows all" in shown(
        sample(tmp_path, made), chat, Cuts(said=None, results=10)
    )


def test_rewards_and_failures_stand_in_the_line_of_a_rollout(
    tmp_path: Path, chat: ChatTemplate
) -> None:
    made = trajectory(chat, ("x", ()))
    good = Rewards(values={"accuracy": 1.0}, total=1.0)
    bad = Rewards(values={"judge": "timeout"}, total=0.0, errors=("judge took longer than 60 s",))
    assert shown(sample(tmp_path, made, rewards=good), chat, EVERYTHING)[-1].startswith(
        "Rollout 1: ✓ reward=1.000  [accuracy=1.000] answer, 1 turn, 0 calls, "
    )
    lines = shown(sample(tmp_path, made, rewards=bad), chat, EVERYTHING)
    assert lines[-2].startswith("Rollout 1: ✓ reward=0.000  [judge=timeout] answer, ")
    assert lines[-1] == "    ⚠ judge took longer than 60 s"
    assert shown(sample(tmp_path, None), chat, EVERYTHING)[-1] == (
        "Rollout 1: ✗ server gone  → sample_1.json"
    )
