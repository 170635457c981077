"""What travels between the parts: frozen records, each made whole by the stage that owns it.

    Prompt ──rollout──▶ Trajectory ──teacher──▶ ScoredTrajectory ──▶ Batch ──trainer──▶ metrics

No record has a field that a later stage fills in. Arrays are numpy; torch is not imported here. A
log-probability stands exactly where a token was sampled and is NaN everywhere else, so that using
one by mistake cannot pass unseen.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]
Message = Mapping[str, Any]


class StopReason(StrEnum):
    """Why one generation ended."""

    STOP = "stop"  # a stop token was sampled; it is the last token of the completion
    LENGTH = "length"  # the cap on tokens of this generation was reached, or its deadline


class EndReason(StrEnum):
    """Why a trajectory ended."""

    ANSWER = "answer"  # a turn without a tool call, under termination_policy last_tool
    MAX_TURNS = "max_turns"  # rollout.max_turns generations were made
    MAX_TOKENS = "max_tokens"  # a generation hit rollout.max_tokens and held no complete tool call
    REQUEST_TIMEOUT = "request_timeout"  # as MAX_TOKENS, but cut at engine.request_timeout_s
    CONTEXT_FULL = "context_full"  # the next turn does not fit in rollout.max_context_window
    TIMEOUT = "timeout"  # rollout.rollout_timeout passed; kept to the last complete turn
    FOREIGN_TOKEN = "foreign_token"  # an id without a token, or unknown to the teacher; it is cut


class ToolOutcome(StrEnum):
    """What became of one tool call; each is a text for the model, and counted apart."""

    OK = "ok"
    MODEL_ERROR = "model_error"  # unknown tool, bad JSON, wrong argument: the student's mistake
    ERROR = "error"  # the tool raised, or its worker died
    TIMEOUT = "timeout"  # the call's deadline passed


@dataclass(frozen=True, slots=True, order=True)
class RolloutId:
    """Names one trajectory for ever: RolloutId(step=3, prompt=17, rollout=0). Sorts a batch."""

    step: int  # optimizer step that the rollout belongs to; -1: evaluation, -2: rnow test
    prompt: int  # index of the prompt in its file, from 0
    rollout: int  # index within the group, from 0

    def __str__(self) -> str:
        return f"{self.step}.{self.prompt}.{self.rollout}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One line of train.jsonl.

    Prompt(index=0, line=1, messages=({"role": "user", "content": "Which drug…"},), tools=None)
    """

    index: int  # position among the prompts of the file, from 0
    line: int  # line number in the file, from 1
    messages: tuple[Message, ...]  # templating done
    tools: tuple[str, ...] | None  # names of allowed tools; None: all of tools.py
    metadata: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, Any] = field(default_factory=dict)
    rewards: tuple[str, ...] = ()  # tracking only in distillation
    grader: str | None = None  # of rewards.py; None: data.grader


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallRecord:
    """One tool call of a turn, with what the model was told."""

    name: str  # as the model wrote it; "" where the call's JSON could not be read
    arguments: str  # JSON as the model wrote it
    outcome: ToolOutcome
    text: str  # what went into the ledger
    duration_s: float
    truncated: bool  # the text was cut to rollout.max_tool_response
    counts: Mapping[str, int] = field(default_factory=dict)  # what the tool counted of itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One generation and the results of the tools that it called."""

    start: int  # index of the first sampled token in the trajectory
    end: int  # one past the last sampled token
    stop_reason: StopReason
    tool_calls: tuple[ToolCallRecord, ...]
    duration_s: float  # sampling, without tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One finished rollout: every token id that the student saw or wrote, and what we know of each.

    Trajectory(id=RolloutId(0, 5, 1), token_ids=[7, 8, 9, 2], action_mask=[F, F, T, T],
               turn_index=[-1, -1, 0, 0], sampler_logprobs=[nan, nan, -0.3, -0.1],
               policy_version=[-1, -1, 0, 0], …)
    """

    id: RolloutId
    token_ids: IntArray  # [tokens]
    action_mask: BoolArray  # [tokens] True where the student sampled the token
    turn_index: IntArray  # [tokens] the token's turn, tool results too; -1: prompt
    sampler_logprobs: FloatArray  # [tokens] nats; NaN where action_mask is False
    policy_version: IntArray  # [tokens] -1 where action_mask is False
    turns: tuple[Turn, ...]
    end_reason: EndReason
    num_drift_tokens: (
        int  # ids that the engine says it received and that differ from the ledger; must be 0
    )
    duration_s: float

    def __post_init__(self) -> None:
        num_tokens = len(self.token_ids)
        for name in ("action_mask", "turn_index", "sampler_logprobs", "policy_version"):
            if len(getattr(self, name)) != num_tokens:
                raise ValueError(
                    f"trajectory {self.id}: {name} has not one entry a token ({num_tokens})"
                )
        if not np.array_equal(np.isfinite(self.sampler_logprobs), self.action_mask):
            raise ValueError(
                f"trajectory {self.id}: sampler log-probabilities must stand on action tokens only"
            )
        if not np.array_equal(self.policy_version >= 0, self.action_mask):
            raise ValueError(
                f"trajectory {self.id}: a policy version stands exactly on action tokens"
            )

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_actions(self) -> int:
        return int(self.action_mask.sum())

    @property
    def tool_calls(self) -> tuple[ToolCallRecord, ...]:
        """All calls, turn by turn."""
        return tuple(call for turn in self.turns for call in turn.tool_calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrajectory:
    """A trajectory with the teacher's log-probability of every sampled token."""

    trajectory: Trajectory
    teacher_logprobs: FloatArray  # [tokens] nats; NaN where action_mask is False

    def __post_init__(self) -> None:
        if not np.array_equal(np.isfinite(self.teacher_logprobs), self.trajectory.action_mask):
            raise ValueError(
                f"trajectory {self.trajectory.id}: teacher log-probabilities must be finite on "
                "action tokens and stand nowhere else"
            )

    @property
    def mean_gap(self) -> float:
        """The sampler's less the teacher's log-probability, nats a sampled token; 0 without one."""
        gaps = self.trajectory.sampler_logprobs - self.teacher_logprobs
        gaps = gaps[self.trajectory.action_mask]
        return float(gaps.mean()) if gaps.size else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """All scored trajectories of one step, in the order of their ids, never of their arrival."""

    step: int
    scored: tuple[ScoredTrajectory, ...]

    def __post_init__(self) -> None:
        ids = [item.trajectory.id for item in self.scored]
        if ids != sorted(set(ids)):
            raise ValueError(
                f"batch of step {self.step}: trajectories must be in the order of their ids"
            )

    @property
    def num_actions(self) -> int:
        return sum(item.trajectory.num_actions for item in self.scored)


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on `parts` alone, on every machine, in every process.

    >>> derive_seed(0, "rollout", 3, 17, 0, 1) == derive_seed(0, "rollout", 3, 17, 0, 1)
    True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
