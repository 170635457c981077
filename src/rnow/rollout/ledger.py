r"""The token ledger: what the student saw and wrote, as ids that are only ever appended.

    tokens   prompt | sampled turn 0, eot | \n tool text <assistant>\n | sampled turn 1, eot
    action     F    |   T  T  T  T  T  T  | F   F   F        F        F |   T  T  T  T  T  T
    turn      -1    |   0  0  0  0  0  0  | 0   0   0        0        0 |   1  1  1  1  1  1

A token's mask, turn, log-probability and policy version are written in the moment in which it comes
into being, and never again. Nothing sampled is decoded and encoded again. The end-of-turn token is
an action where the student sampled it; where it did not (the generation was cut, or ended with
another stop token) the bridge brings one that is no action.

A trajectory ends with its last sampled token, also where a bridge was appended after it. What the
tools of the last turn said stands in `turns[-1].tool_calls`: as tokens it would be context without
an action behind it, which teacher and trainer pay for and learn nothing from.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rnow.engines.base import Completion
from rnow.errors import EngineError
from rnow.records import EndReason, IntArray, RolloutId, ToolCallRecord, Trajectory, Turn


class Ledger:
    """Builds one Trajectory: the prompt, completions with bridges between them, `close`."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._token_ids = [int(token) for token in prompt_ids]
        self._action_mask = [False] * len(self._token_ids)
        self._turn_index = [-1] * len(self._token_ids)
        self._logprobs = [math.nan] * len(self._token_ids)
        self._policy_version = [-1] * len(self._token_ids)
        self._turns: list[Turn] = []
        self._num_drift_tokens = 0

    def __len__(self) -> int:
        return len(self._token_ids)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All ids so far: what the next generation is asked to continue."""
        return tuple(self._token_ids)

    @property
    def num_turns(self) -> int:
        return len(self._turns)

    def add_completion(self, completion: Completion, *, duration_s: float) -> None:
        """Append what the student sampled: every token of it is an action."""
        _check_completion(completion)
        self._num_drift_tokens += _num_differences(completion.prompt_ids, self._token_ids)
        start = len(self)
        turn = Turn(
            start=start,
            end=start + len(completion.token_ids),
            stop_reason=completion.stop_reason,
            tool_calls=(),
            duration_s=duration_s,
        )
        self._turns.append(turn)
        logprobs: list[float] = completion.logprobs.tolist()
        self._append(completion.token_ids.tolist(), logprobs, completion.policy_version)

    def add_tool_calls(self, records: Sequence[ToolCallRecord]) -> None:
        """Note what became of the last turn's calls; their texts become tokens with the bridge."""
        self._turns[-1] = replace(self._turns[-1], tool_calls=tuple(records))

    def add_bridge(self, bridge: Sequence[int]) -> None:
        """Append what stands before the next generation; its first id ends the turn."""
        end_was_sampled = self._action_mask[-1] and self._token_ids[-1] == bridge[0]
        self._append(bridge[1:] if end_was_sampled else bridge, None, -1)

    def close(self, *, id: RolloutId, end_reason: EndReason, duration_s: float) -> Trajectory:
        """Return the trajectory, up to its last sampled token; there must be one."""
        end = self._turns[-1].end
        return Trajectory(
            id=id,
            token_ids=np.array(self._token_ids[:end], dtype=np.int32),
            action_mask=np.array(self._action_mask[:end], dtype=np.bool_),
            turn_index=np.array(self._turn_index[:end], dtype=np.int32),
            sampler_logprobs=np.array(self._logprobs[:end], dtype=np.float32),
            policy_version=np.array(self._policy_version[:end], dtype=np.int32),
            turns=tuple(self._turns),
            end_reason=end_reason,
            num_drift_tokens=self._num_drift_tokens,
            duration_s=duration_s,
        )

    def _append(
        self, ids: Sequence[int], logprobs: Sequence[float] | None, policy_version: int
    ) -> None:
        """Append ids of the last turn: actions if they have log-probabilities, context if not."""
        self._token_ids += ids
        self._action_mask += [logprobs is not None] * len(ids)
        self._turn_index += [self.num_turns - 1] * len(ids)
        self._logprobs += [math.nan] * len(ids) if logprobs is None else logprobs
        self._policy_version += [policy_version] * len(ids)


def _check_completion(completion: Completion) -> None:
    num_tokens = len(completion.token_ids)
    if num_tokens == 0:
        raise EngineError("the engine sampled no token; even an empty answer has a stop token")
    if len(completion.logprobs) != num_tokens:
        raise EngineError(
            f"the engine gave {len(completion.logprobs)} log-probabilities "
            f"for {num_tokens} sampled tokens"
        )
    if not np.isfinite(completion.logprobs).all():
        at = int(np.flatnonzero(~np.isfinite(completion.logprobs))[0])
        raise EngineError(
            f"the engine's log-probability of sampled token {at} (id {completion.token_ids[at]}) "
            f"is {completion.logprobs[at]}; it must be finite"
        )


def _num_differences(received: IntArray, sent: list[int]) -> int:
    """Count the ids that the engine says it received and that are not what it was sent."""
    ids: list[int] = received.tolist()
    if ids == sent:
        return 0
    differing = sum(a != b for a, b in zip(ids, sent, strict=False))
    return differing + abs(len(ids) - len(sent))
