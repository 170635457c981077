"""One attempt at a prompt: sample, run the tools that were called, append what they said, again.

    prompt ─▶ ledger ─▶ engine.sample ─▶ calls? ─▶ tools, side by side ─▶ bridge ─┐
                ▲                          │ none                                 │
                │                          ▼                                      │
                │                      Trajectory                                 │
                └─────────────────────────────────────────────────────────────────┘

It ends as EndReason says. A generation that was cut keeps its tokens: they were sampled from the
policy like any others. If it holds a complete call the rollout goes on, after an end of turn that
the student did not sample. The calls of the last turn are run and recorded too, but their texts
stay outside the ledger (ledger.py says why).

What a model or a tool did wrong is data. What an engine or a tool worker could not do is raised.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rnow.chat.markup import storable
from rnow.chat.template import ChatTemplate
from rnow.config.settings import RolloutSettings
from rnow.engines.base import Completion, Engine, SampleRequest
from rnow.errors import EngineError, RolloutError
from rnow.records import (
    EndReason,
    Prompt,
    RolloutId,
    StopReason,
    ToolCallRecord,
    Trajectory,
    derive_seed,
)
from rnow.rollout.ledger import Ledger
from rnow.runtime.kill_points import point
from rnow.runtime.side_by_side import side_by_side
from rnow.tools.base import ToolCall, ToolRunner, ToolSchema, allowed_schemas

# A rollout whose very first id is foreign would have nothing to train on, so it begins again: a
# network of random weights does so every few rollouts, a trained one never.
_MAX_BEGINNINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What is to be rolled out: a prompt, once, with one version of the weights."""

    prompt: Prompt
    id: RolloutId
    policy_version: int
    temperature: float = 1.0


async def run_rollout(
    attempt: Attempt,
    *,
    engine: Engine,
    chat: ChatTemplate,
    tools: ToolRunner | None,
    limits: RolloutSettings,
    run_seed: int,
    foreign_ids: frozenset[int] = frozenset(),
) -> Trajectory:
    """Roll a prompt out once; raise RolloutError if no generation ended.

    `tools` None is a project without tools: nothing that the student writes is read as a call.
    `foreign_ids` are not to be trained on: the rollout ends where one of them is sampled, or where
    a tool's text holds one.
    """
    started = time.monotonic()
    rollout = _Rollout(
        attempt=attempt,
        engine=engine,
        chat=chat,
        tools=tools,
        limits=limits,
        run_seed=run_seed,
        foreign_ids=foreign_ids,
        ledger=Ledger(prompt_ids(attempt.prompt, chat, tools)),
    )
    try:
        async with asyncio.timeout(limits.rollout_timeout) as deadline:
            end_reason = await rollout.take_turns()
    except TimeoutError:
        if not deadline.expired():
            raise
        end_reason = EndReason.TIMEOUT
    finally:
        if tools is not None:
            tools.release(attempt.id)
        await engine.release(str(attempt.id))
    if rollout.ledger.num_turns == 0:
        raise RolloutError(rollout.why_nothing_was_sampled(end_reason))
    duration_s = time.monotonic() - started
    return rollout.ledger.close(id=attempt.id, end_reason=end_reason, duration_s=duration_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rendered:
    """What a prompt was rendered to, by which template and with which tools."""

    prompt: Prompt
    chat: ChatTemplate
    schemas: Sequence[ToolSchema]
    ids: tuple[int, ...]

    def is_of(self, prompt: Prompt, chat: ChatTemplate, schemas: Sequence[ToolSchema]) -> bool:
        return self.prompt is prompt and self.chat is chat and self.schemas == schemas


_last: _Rendered | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rollout:
    """One rollout while it runs; all that changes is its ledger."""

    attempt: Attempt
    engine: Engine
    chat: ChatTemplate
    tools: ToolRunner | None
    limits: RolloutSettings
    run_seed: int
    foreign_ids: frozenset[int]
    ledger: Ledger

    @property
    def id(self) -> RolloutId:
        return self.attempt.id

    async def take_turns(self) -> EndReason:
        limits = self.limits
        while (room := limits.max_context_window - len(self.ledger)) > 0:
            max_tokens = min(room, limits.max_tokens or room)
            completion = await self._sample(max_tokens)
            if completion is None:
                return EndReason.FOREIGN_TOKEN
            stopped = int(completion.token_ids[-1]) in self.chat.stop_token_ids
            calls = self._read_calls(completion, stopped)
            records = await self._run_side_by_side(calls)
            is_cut = len(completion.token_ids) < max_tokens and not stopped
            end_reason = self._end_reason(calls, stopped, is_cut=is_cut)
            if end_reason is not None:
                return end_reason
            bridge = self.chat.bridge([record.text for record in records], calls)
            if not self.foreign_ids.isdisjoint(bridge):
                return EndReason.FOREIGN_TOKEN
            self.ledger.add_bridge(bridge)
        return EndReason.CONTEXT_FULL

    async def _sample(self, max_tokens: int) -> Completion | None:
        """Add a generation to the ledger and return it; None: it ended with a foreign token."""
        started = time.monotonic()
        for number in range(_MAX_BEGINNINGS):
            request = self._request(max_tokens, number)
            completion = await self.engine.sample(request)
            point("rollout/sampled")
            self._check_end(completion, request)
            is_foreign = int(completion.token_ids[-1]) in self.foreign_ids
            if is_foreign:
                completion = completion.without_last()
            if len(completion.token_ids):
                self.ledger.add_completion(completion, duration_s=time.monotonic() - started)
            if len(completion.token_ids) or self.ledger.num_turns:
                break
        return None if is_foreign else completion

    def _request(self, max_tokens: int, number: int) -> SampleRequest:
        """Return what is asked of the engine; `number` counts beginnings that were thrown away."""
        where = (self.id.step, self.id.prompt, self.id.rollout, self.ledger.num_turns)
        return SampleRequest(
            token_ids=self.ledger.token_ids,
            session=str(self.id),
            max_tokens=max_tokens,
            stop_token_ids=(*self.chat.stop_token_ids, *sorted(self.foreign_ids)),
            seed=derive_seed(self.run_seed, "sample", *where, *((number,) if number else ())),
            policy_version=self.attempt.policy_version,
            temperature=self.attempt.temperature,
        )

    def _check_end(self, completion: Completion, request: SampleRequest) -> None:
        num_tokens, last = len(completion.token_ids), int(completion.token_ids[-1])
        if num_tokens > request.max_tokens:
            raise EngineError(
                f"the engine sampled {num_tokens} tokens, asked for {request.max_tokens}"
            )
        if completion.policy_version != self.attempt.policy_version:
            raise EngineError(
                f"the engine sampled from policy version {completion.policy_version}, asked for "
                f"{self.attempt.policy_version}"
            )
        if completion.stop_reason is StopReason.STOP and last not in request.stop_token_ids:
            raise EngineError(
                f"the engine says that it stopped at a stop token, but gave {last} as the last id; "
                f"the stop tokens are {list(self.chat.stop_token_ids)}"
            )

    def _read_calls(self, completion: Completion, stopped: bool) -> tuple[ToolCall, ...]:
        if self.tools is None:
            return ()
        ids = completion.token_ids.tolist()
        return self.chat.parse_calls(
            ids[:-1] if stopped else ids,
            stopped=stopped,
            tools=self.tools.schemas,
            after_tools=self.ledger.num_turns > 1,
        )

    def _end_reason(
        self, calls: Sequence[ToolCall], stopped: bool, *, is_cut: bool
    ) -> EndReason | None:
        """`is_cut`: the generation ended before its cap and without a stop token."""
        limits = self.limits
        if not calls and is_cut:
            return EndReason.REQUEST_TIMEOUT
        if not calls and not stopped:
            window_is_full = len(self.ledger) == limits.max_context_window
            return EndReason.CONTEXT_FULL if window_is_full else EndReason.MAX_TOKENS
        if not calls and limits.termination_policy == "last_tool":
            return EndReason.ANSWER
        return EndReason.MAX_TURNS if self.ledger.num_turns == limits.max_turns else None

    async def _run_side_by_side(self, calls: Sequence[ToolCall]) -> Sequence[ToolCallRecord]:
        records: dict[int, ToolCallRecord] = {}

        async def run(position: int, call: ToolCall) -> None:
            records[position] = await self._run_call(call)

        try:
            await side_by_side(*(run(position, call) for position, call in enumerate(calls)))
        finally:
            # Also when time runs out: what the tools that were ready did is to be counted.
            in_order = [records[position] for position in sorted(records)]
            self.ledger.add_tool_calls(in_order)
        return in_order

    async def _run_call(self, call: ToolCall) -> ToolCallRecord:
        assert self.tools is not None
        answer = await self.tools.call(
            call,
            rollout=self.id,
            allowed=self.attempt.prompt.tools,
            metadata=self.attempt.prompt.metadata,
        )
        return ToolCallRecord(
            name=storable(call.name),
            arguments=storable(_arguments_text(call)),
            outcome=answer.outcome,
            text=storable(answer.text),
            duration_s=answer.duration_s,
            truncated=answer.truncated,
            counts=answer.counts,
        )

    def why_nothing_was_sampled(self, end_reason: EndReason) -> str:
        where = f"rollout {self.id} (prompt of line {self.attempt.prompt.line}) has no action token"
        if end_reason is EndReason.CONTEXT_FULL:
            return (
                f"{where}: its prompt of {len(self.ledger)} tokens leaves no room in "
                f"rollout.max_context_window = {self.limits.max_context_window}"
            )
        if end_reason is EndReason.FOREIGN_TOKEN:
            return (
                f"{where}: the student began {_MAX_BEGINNINGS} times with an id that no token has"
            )
        return (
            f"{where}: no generation ended within rollout.rollout_timeout = "
            f"{self.limits.rollout_timeout:g} s"
        )


def prompt_ids(prompt: Prompt, chat: ChatTemplate, tools: ToolRunner | None) -> tuple[int, ...]:
    """Return the ids of a prompt as its rollouts begin with them.

    Those of the last prompt are kept: the rollouts of a group begin one after the other, and
    rendering a prompt takes longer than all else that a turn does here.
    """
    global _last
    schemas = [] if tools is None else allowed_schemas(tools.schemas, prompt.tools)
    if _last is None or not _last.is_of(prompt, chat, schemas):
        ids = tuple(chat.render_prompt(prompt.messages, schemas))
        _last = _Rendered(prompt=prompt, chat=chat, schemas=schemas, ids=ids)
    return _last.ids


def _arguments_text(call: ToolCall) -> str:
    if call.error is not None:
        return call.raw
    return json.dumps(call.arguments, ensure_ascii=False)
