"""A trajectory as a person reads it."""

from rnow.chat.template import ChatTemplate
from rnow.records import ToolCallRecord, Trajectory


def transcript(trajectory: Trajectory, chat: ChatTemplate) -> str:
    """Return prompt, turns and tool results as text, each under a line that says what it is.

    What the student wrote is decoded from its ids, stop token included; what the tools said is
    their text as it went to the student.
    """
    prompt_ids = trajectory.token_ids[trajectory.turn_index == -1].tolist()
    parts = [f"── prompt · {len(prompt_ids)} tokens", chat.decode(prompt_ids).strip()]
    for number, turn in enumerate(trajectory.turns, start=1):
        ids = trajectory.token_ids[turn.start : turn.end].tolist()
        parts += [f"── turn {number} · {len(ids)} tokens · {turn.stop_reason}", chat.decode(ids)]
        for call in turn.tool_calls:
            parts += [_tool_line(call), call.text]
    parts.append(f"── end · {trajectory.end_reason} · {trajectory.num_actions} sampled tokens")
    return "\n".join(parts)


def _tool_line(call: ToolCallRecord) -> str:
    cut = " · cut" if call.truncated else ""
    return f"── {call.name or 'unreadable call'} {call.arguments} · {call.outcome}{cut}"
