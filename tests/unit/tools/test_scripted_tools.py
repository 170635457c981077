from dataclasses import dataclass
from datetime import date

from scripted_tools import ScriptedTools

from rnow.core import ToolArgs
from rnow.core.counts import count
from rnow.records import RolloutId, ToolOutcome
from rnow.tools.base import ToolCall, ToolRunner, ToolSchema


@dataclass
class Point:
    x: int


def look(key: str, args: ToolArgs) -> str:
    """Look something up."""
    count("looks")
    return f"{key} of {args.metadata['task']}"


async def move(place: Point, day: date) -> str:
    """Move."""
    return f"{place.x + 1} on {day:%d.%m.}"


async def fail(key: str) -> str:
    """Fail."""
    raise LookupError(f"no {key}")


async def test_scripted_tools_answer_as_real_ones_do() -> None:
    tools = ScriptedTools({"look": look, "fail": fail, "move": move})
    runner: ToolRunner = tools
    rollout = RolloutId(0, 1, 2)

    async def ask(name: str, **arguments: object) -> tuple[ToolOutcome, str, dict[str, int]]:
        call = ToolCall(name=name, arguments=arguments, raw="")
        answer = await runner.call(
            call, rollout=rollout, allowed=("look", "fail", "move"), metadata={"task": "t"}
        )
        return answer.outcome, answer.text, dict(answer.counts)

    assert await ask("look", key=5) == (ToolOutcome.OK, "5 of t", {"looks": 1})
    given = {"place": {"x": 2}, "day": "2026-01-31"}
    assert await ask("move", **given) == (ToolOutcome.OK, "3 on 31.01.", {})
    assert await ask("move", **{**given, "place": {}}) == (
        ToolOutcome.MODEL_ERROR,
        "<tool_error>Tool 'move': argument 'place.x' is not valid: Field required.</tool_error>",
        {},
    )
    assert await ask("fail", key="x") == (
        ToolOutcome.ERROR,
        "<tool_error>no x</tool_error>",
        {},
    )
    assert await ask("other") == (
        ToolOutcome.MODEL_ERROR,
        "<tool_error>Tool 'other' not found in registry</tool_error>",
        {},
    )
    moves = [(rollout, "move", given), (rollout, "move", {**given, "place": {}})]
    looked, failed = (rollout, "look", {"key": "5"}), (rollout, "fail", {"key": "x"})
    assert tools.calls == [looked, *moves, failed]
    assert runner.schemas[0] == ToolSchema(
        name="look",
        description="Look something up.",
        parameters={
            "type": "object",
            "properties": {"key": {"type": "string"}},
            "required": ["key"],
            "additionalProperties": False,
        },
    )
