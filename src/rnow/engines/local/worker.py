"""The forward thread's side of `LocalEngine`: which sequence reads, decodes or is scored next.

The methods of `Worker` that the event loop calls only leave a task; all state is touched by the
forward thread alone. A unit of work is short (one text read, or one decoding step; the last of the
texts that are to be scored has the LM head for all of them), then the thread is free for another
engine's unit. Reading goes before decoding, since a step costs much the same for few rows as for
many; but what was read decodes a step now and then while others still wait to be read, so that
short answers end early.

A trajectory's life:

    sample ─▶ waiting ─▶ read what is new ─▶ a row of its policy's batch ─▶ Completion
                              ▲                        │
                              └── session: ids, keys and values, weights ◀┘ until `release`
"""

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from rnow.engines.base import Completion, SampleRequest, ScoreRequest, Scores
from rnow.engines.local.batch import DecodingRow, read
from rnow.engines.local.cache import KeyValues
from rnow.engines.local.policy import LoadedPolicy
from rnow.engines.local.reply import FORWARD_THREAD, Reply
from rnow.engines.local.sampling import uniform_stream
from rnow.engines.local.scoring import Scoring, read_text
from rnow.errors import EngineError
from rnow.records import StopReason

# Tokens: a step costs about a tenth of reading so many.
_READ_BETWEEN_STEPS = 512

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One call of `sample`: who waits, and for what."""

    reply: Reply[Completion]
    request: SampleRequest


@dataclass(slots=True, eq=False)
class _Session:
    """What is kept of a trajectory between turns."""

    policy: LoadedPolicy
    token_ids: list[int]  # whose keys and values are held
    key_values: KeyValues  # empty while a row holds them


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Running:
    """A generation that has a row."""

    generation: Generation
    session: _Session
    prompt_ids: list[int]  # what the cache held when sampling began
    row: DecodingRow


class Worker:
    """Runs the forwards of one engine, a unit at a time."""

    def __init__(self, start: LoadedPolicy) -> None:
        self.start = start  # what the engine was started with; scored with when no version is named
        self.policies = {start.version: start}
        self._sessions: dict[str, _Session] = {}
        self._tasks: deque[tuple[Callable[[], None], bool]] = deque()
        self._waiting: deque[tuple[Generation, _Session]] = deque()
        self._running: list[_Running] = []
        self._scoring = Scoring()
        self._lock = threading.Lock()
        self._num_read = 0  # tokens since the last decoding step
        self._is_scheduled = False
        self._is_closed = False

    # Called from the event loop.

    def call(self, work: Callable[[], Value]) -> Reply[Value]:
        """Have `work` done in the forward thread; its value or error settles the reply."""
        reply: Reply[Value] = Reply()
        return self._ask(reply, lambda: reply.resolve(work()), False)

    def score(self, request: ScoreRequest) -> Reply[Scores]:
        """Have a text read, and scored together with those that wait beside it."""
        reply: Reply[Scores] = Reply()

        def work() -> None:
            version = request.policy_version
            policy = self.start if version is None else self.policy(version)
            self._scoring.add(policy.head, read_text(policy.model, request), request, reply)

        return self._ask(reply, work, True)

    def generate(self, generation: Generation) -> None:
        self._post(lambda: self._enqueue(generation), False)

    def cancel(self, generation: Generation) -> None:
        """Nobody waits for it any more: free its place."""
        self._post(lambda: self._cancel(generation), False)

    def cut(self, generation: Generation) -> None:
        """Complete it with what it has sampled; one that waits for a row has nothing."""
        self._post(lambda: self._cut(generation), False)

    def close(self) -> Reply[None]:
        """Fail whatever is under way or asked for, forget everything kept."""
        self._is_closed = True
        reply: Reply[None] = Reply()

        def task() -> None:
            self._fail_all(EngineError("the engine was closed"))
            self.policies.clear()
            reply.resolve(None)

        self._post(task, False)
        return reply

    def describe(self) -> str:
        """Say what the engine is busy with, for the message of a deadline."""
        return f"{len(self._running)} sequences decode, {len(self._waiting)} wait for a row"

    def _ask(self, reply: Reply[Value], work: Callable[[], None], is_forward: bool) -> Reply[Value]:
        def task() -> None:
            if reply.abandoned:
                return
            try:
                self._check_open()
                work()
            # Whatever torch or a file raises belongs to the caller; the thread serves the others.
            except Exception as error:
                reply.fail(error)

        self._post(task, is_forward)
        return reply

    def _post(self, task: Callable[[], None], is_forward: bool) -> None:
        with self._lock:
            self._tasks.append((task, is_forward))
            if not self._is_scheduled:
                self._is_scheduled = True
                FORWARD_THREAD.submit(self._run_unit)

    # Called in the forward thread.

    def policy(self, version: int) -> LoadedPolicy:
        if version not in self.policies:
            loaded = ", ".join(str(known) for known in sorted(self.policies)) or "none"
            raise EngineError(f"policy version {version} is not loaded; loaded: {loaded}")
        return self.policies[version]

    def release(self, session: str) -> None:
        self._sessions.pop(session, None)

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError("the engine was closed")

    def _fail_all(self, error: Exception) -> None:
        """Fail every generation and forget every session: what they held is in no known state."""
        self._scoring.fail(error)
        for generation in self._under_way():
            generation.reply.fail(error)
        for policy in {running.session.policy for running in self._running}:
            policy.batch.clear()
        self._waiting.clear()
        self._running.clear()
        self._sessions.clear()

    def _run_unit(self) -> None:
        try:
            with torch.inference_mode():
                self._unit()
        # Each request guards itself; this is for what nobody foresaw, so that no caller waits for
        # ever.
        except Exception as error:
            self._fail_all(error)
        with self._lock:
            self._is_scheduled = bool(self._tasks or self._waiting or self._running)
            if self._is_scheduled:
                try:
                    FORWARD_THREAD.submit(self._run_unit)
                except RuntimeError:  # the interpreter is on its way out; nobody waits for more
                    self._is_scheduled = False

    def _unit(self) -> None:
        while self._tasks:
            task, is_forward = self._tasks.popleft()
            task()
            if is_forward:
                break
        with self._lock:  # while it is gone through none may be added
            is_last = not any(is_forward for _, is_forward in self._tasks)
        if is_last:
            self._scoring.finish()
        if self._num_read >= _READ_BETWEEN_STEPS or not self._start_next():
            self._num_read = 0
            for policy in {running.session.policy for running in self._running}:
                self._step(policy)

    def _under_way(self) -> list[Generation]:
        waiting = [generation for generation, _ in self._waiting]
        return waiting + [running.generation for running in self._running]

    def _enqueue(self, generation: Generation) -> None:
        try:
            self._check_open()
            name, version = generation.request.session, generation.request.policy_version
            if any(other.request.session == name for other in self._under_way()):
                raise EngineError(f"session {name} has a generation under way already")
            session = self._sessions.get(name)
            if session is None or session.policy.version != version:
                session = _Session(self.policy(version), [], ())
            self._waiting.append((generation, session))
        except EngineError as error:
            generation.reply.fail(error)

    def _cancel(self, generation: Generation) -> None:
        self._waiting = deque(item for item in self._waiting if item[0] is not generation)
        for running in self._running:
            if running.generation is generation:
                self._end(running)
                # A turn cut short leaves a cache that no uninterrupted run has: the next call
                # reads anew.
                self._sessions.pop(generation.request.session, None)
                return

    def _cut(self, generation: Generation) -> None:
        for running in self._running:
            if running.generation is generation:
                return self._complete(running, StopReason.LENGTH)
        generation.reply.fail(EngineError("nothing was sampled"))

    def _start_next(self) -> bool:
        """Read the first waiting text whose policy has a free row; False if there is none."""
        for index, (generation, session) in enumerate(self._waiting):
            if session.policy.batch.is_full:
                continue
            del self._waiting[index]
            try:
                self._start_generation(generation, session)
            # Out of memory, a kernel that fails: the caller must hear of it, the others go on.
            except Exception as error:
                self._fail(generation, error)
            return True
        return False

    def _start_generation(self, generation: Generation, session: _Session) -> None:
        model, request = session.policy.model, generation.request
        token_ids = list(request.token_ids)
        held = session.token_ids
        if held and len(held) < len(token_ids) and token_ids[: len(held)] == held:
            new_ids = token_ids[len(held) :]
            self._num_read += len(new_ids)
            key_values, logits = read(model, new_ids, session.key_values)
            held += new_ids
        else:
            prompts = session.policy.prompts
            self._num_read += 0 if token_ids in prompts else len(token_ids)
            key_values, logits = prompts.read(model, token_ids)
            held[:] = token_ids
        row = DecodingRow(
            length=len(held),
            uniforms=uniform_stream(request.seed),
            temperature=request.temperature,
        )
        row.draw(logits)
        session.policy.batch.add(row, key_values)
        session.key_values = ()
        self._sessions[request.session] = session
        running = _Running(generation=generation, session=session, prompt_ids=held.copy(), row=row)
        self._running.append(running)
        self._end_if_done(running)

    def _step(self, policy: LoadedPolicy) -> None:
        members = [running for running in self._running if running.session.policy is policy]
        try:
            policy.batch.step()
            for running in members:
                self._end_if_done(running)
        # As above; a batch that failed half way is in no known state, so it starts afresh.
        except Exception as error:
            for running in members:
                if running in self._running:
                    self._running.remove(running)
                    self._fail(running.generation, error)
            policy.batch.clear()

    def _end_if_done(self, running: _Running) -> None:
        row, request = running.row, running.generation.request
        if not math.isfinite(row.logprobs[-1]):
            self._end(running)
            what = f"the log-probability of token {len(running.session.token_ids)}"
            error = EngineError(f"session {request.session}: {what} is {row.logprobs[-1]}")
            self._fail(running.generation, error)
        elif row.token_ids[-1] in request.stop_token_ids:
            self._complete(running, StopReason.STOP)
        elif len(row.token_ids) == request.max_tokens:
            self._complete(running, StopReason.LENGTH)

    def _fail(self, generation: Generation, error: Exception) -> None:
        self._sessions.pop(generation.request.session, None)
        generation.reply.fail(error)

    def _complete(self, running: _Running, stop_reason: StopReason) -> None:
        self._end(running)
        completion = Completion(
            prompt_ids=np.array(running.prompt_ids, dtype=np.int32),
            token_ids=np.array(running.row.token_ids, dtype=np.int32),
            logprobs=np.array(running.row.logprobs, dtype=np.float32),
            stop_reason=stop_reason,
            policy_version=running.session.policy.version,
        )
        running.generation.reply.resolve(completion)

    def _end(self, running: _Running) -> None:
        """Free the row; the session takes back its keys and values."""
        self._running.remove(running)
        session, row = running.session, running.row
        session.key_values = session.policy.batch.remove(row)
        session.token_ids += row.token_ids[: row.length - len(session.token_ids)]
