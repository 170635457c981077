"""The rollouts of one `rnow test`, on disk: rollouts/rollout_<N>/sample_<K>.json.

N is the next number that is free. A sample's file is written when its rollout has ended, whichever
way, so that what was finished is there whatever comes after. What one looks at first stands first,
the conversation last.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnow.chat.conversation import conversation, turn_text
from rnow.chat.template import ChatTemplate
from rnow.commands.test.tool_statistics import error_code
from rnow.records import EndReason, Prompt, Trajectory
from rnow.runtime.atomic_files import replace_file
from rnow.tools.graders import Grade
from rnow.tools.rewards import Rewards

# A conversation that the window, or the cap on a generation, cut off.
_CUT = (EndReason.CONTEXT_FULL, EndReason.MAX_TOKENS, EndReason.REQUEST_TIMEOUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One rollout that has ended: with a trajectory, or with the error that it failed with."""

    number: int  # from 1, in the order of the entries
    prompt: Prompt
    trajectory: Trajectory | None
    error: str | None
    # None: no trajectory, an entry without metadata.expected_answer, or no verdict.
    grade: Grade | None
    rewards: Rewards
    file: Path
    grading_error: str | None = None

    def __post_init__(self) -> None:
        if (self.trajectory is None) != (self.error is not None):
            raise ValueError(f"sample {self.number} has a trajectory or an error, one of them")

    @property
    def errors(self) -> tuple[str, ...]:
        """What kept rewards and the grader from a number and a verdict."""
        return (*self.rewards.errors, *([self.grading_error] if self.grading_error else []))


def make_folder(project: Path) -> Path:
    """Make and return the first rollouts/rollout_<N> above all that there are."""
    rollouts = project / "rollouts"
    rollouts.mkdir(exist_ok=True)
    names = (path.name.removeprefix("rollout_") for path in rollouts.glob("rollout_*"))
    number = max((int(name) for name in names if name.isdecimal()), default=0) + 1
    while True:
        folder = rollouts / f"rollout_{number}"
        try:
            folder.mkdir()
        except FileExistsError:  # another test has just taken it
            number += 1
        else:
            return folder


def write_sample(sample: Sample, chat: ChatTemplate) -> None:
    replace_file(
        sample.file, json.dumps(_sample_as_json(sample, chat), indent=2, ensure_ascii=False) + "\n"
    )


def _sample_as_json(sample: Sample, chat: ChatTemplate) -> dict[str, Any]:
    trajectory, prompt, rewards = sample.trajectory, sample.prompt, sample.rewards
    turns = () if trajectory is None else trajectory.turns
    calls = [(number, call) for number, turn in enumerate(turns, 1) for call in turn.tool_calls]
    said = (
        prompt.messages
        if trajectory is None
        else conversation(prompt, trajectory, chat, include_thinking=True)
    )
    end = None if trajectory is None else trajectory.end_reason
    return {
        "id": sample.file.stem,
        "completed": "error" if end is None else end is not EndReason.TIMEOUT,
        "success": trajectory is not None,
        "total_reward": rewards.total,
        "rewards": dict(rewards.values),
        "errors": list(sample.errors),
        "turns": len(turns),
        "truncated": end in _CUT,
        "totalTokens": 0 if trajectory is None else trajectory.num_tokens,
        "promptTokens": 0 if trajectory is None else int((trajectory.turn_index == -1).sum()),
        "completion": "" if trajectory is None else turn_text(trajectory, turns[-1], chat),
        "metadata": dict(prompt.metadata),
        "entry": prompt.index,
        "line": prompt.line,
        "correct": None if sample.grade is None else sample.grade.correct,
        "error": sample.error,
        "tool_errors": [
            {"turn": number, "tool": call.name, "code": code, "text": call.text}
            for number, call in calls
            if (code := error_code(call)) is not None
        ],
        "end_reason": end,
        "duration_s": None if trajectory is None else round(trajectory.duration_s, 3),
        "conversation": [dict(message) for message in said],
    }
