"""`ServedEngine`: an `Engine` on vLLM servers that it starts, watches, and starts again.

    request ─▶ VllmEngine ─▶ answer
       ▲           │ a server has ended, or does not answer
       │           ▼
       └── start it again, give it the weights that it had, compare its probe with the last one

A request that was cut is simply sent again: it carries its ids, its seed and its policy version, so
nothing of a rollout is lost but time. How many ends a run survives is deaths.py's.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from rnow.engines.base import Completion, Sampled, SampleRequest, ScoreRequest, Scores
from rnow.engines.spec import EngineSpec
from rnow.engines.vllm.deaths import MAX_DEATHS, Deaths
from rnow.engines.vllm.engine import VllmEngine
from rnow.engines.vllm.http import HttpError, UnreachableError, VllmClient
from rnow.engines.vllm.server import Progress
from rnow.engines.vllm.starting import Server, Starter, start_all, start_here
from rnow.errors import DeadlineError, EngineError, PublicationError, RnowError
from rnow.runtime.deadline import within
from rnow.runtime.side_by_side import each_to_its_end, end_tasks, side_by_side

_PLACE_LIMIT_S = 600.0  # to find another machine in the place of one that is gone
_ANSWER_LIMIT_S = 60.0  # for one token, of a server that left a request without an answer

Value = TypeVar("Value")


class ServedEngine:
    """One role's servers, and the engine on them.

    engine = await ServedEngine.start(spec, deaths=Deaths(), say=print)
    completion = await engine.sample(SampleRequest(…))
    await engine.aclose()  # ends the servers too
    """

    def __init__(
        self,
        servers: Sequence[Server],
        spec: EngineSpec,
        *,
        start: Starter,
        deaths: Deaths,
        say: Callable[[str], None],
        on_progress: Progress | None,
    ) -> None:
        self._servers = list(servers)
        self._start = start
        self._is_up = [True] * len(servers)
        self._num_ends = 0
        self._some_up, self._all_up = asyncio.Event(), asyncio.Event()
        self._deaths = deaths
        self._say = say
        self._on_progress = on_progress
        self._spec = spec
        # Above what all the starts may take that are allowed, one after another, with their checks.
        start_s = max((server.start_timeout_s for server in spec.servers), default=0.0)
        self._again_limit_s = MAX_DEATHS * (start_s + 3 * spec.request_timeout_s + _PLACE_LIMIT_S)
        self._engine = VllmEngine(
            (),
            clients=[self._client_of(server) for server in servers],
            request_timeout_s=spec.request_timeout_s,
            untied=spec.untied,
        )
        self._probe: tuple[ScoreRequest, Scores] | None = None  # of the version that is held
        self._samples: Sequence[SampleRequest] = ()  # of the same version's probe
        self._lost: BaseException | None = None  # why there is no going on
        self._checking = asyncio.Lock()
        self._note_change()
        self._watching = [self._watch_in_task(place) for place in range(len(servers))]

    @classmethod
    async def start(
        cls,
        spec: EngineSpec,
        *,
        deaths: Deaths,
        say: Callable[[str], None],
        on_progress: Progress | None = None,
        start: Starter = start_here,
    ) -> "ServedEngine":
        """Start all servers; where one cannot start, none is left."""
        servers = await start_all(spec.servers, start=start, say=say, on_progress=on_progress)
        engine = cls(servers, spec, start=start, deaths=deaths, say=say, on_progress=on_progress)
        if spec.role == "teacher":
            try:
                await engine._find_how_it_scores()
            except BaseException:
                await engine.aclose()
                raise
        return engine

    async def sample(self, request: SampleRequest) -> Completion:
        return await self._ask(lambda: self._engine.sample(request))

    async def score(self, request: ScoreRequest) -> Scores:
        return await self._ask(lambda: self._engine.score(request))

    async def _find_how_it_scores(self) -> None:
        """Find out, and say, whether scores come as arrays; which servers can is up to vLLM."""
        await self._ask(
            lambda: self._engine.probe(ScoreRequest(token_ids=(0, 1), start=1)), of_all=True
        )
        if not all(self._engine.at(server.url).scores_compactly for server in self._servers):
            self._say(
                f"the vLLM server of the {self._spec.role} gives log-probabilities as an object "
                "for each token, not as one array: this build has no compact scoring"
            )

    async def probe(self, request: ScoreRequest) -> tuple[Scores, ...]:
        """Score by every server; a server that is started again has to answer the same."""
        answers = await self._ask(lambda: self._engine.probe(request), of_all=True)
        self._probe = (request, answers[0])
        return answers

    async def probe_sampling(self, requests: Sequence[SampleRequest]) -> tuple[Sampled, ...]:
        """Sample at every server; one that is started again has to sample as it scores."""
        sampled = await self._ask(lambda: self._engine.probe_sampling(requests), of_all=True)
        self._samples = tuple(requests)
        return sampled

    async def load_policy(self, path: Path, policy_version: int) -> None:
        self._probe, self._samples = (
            None,
            (),
        )  # from here on a restored server may hold either version
        await self._ask(lambda: self._engine.load_policy(path, policy_version), of_all=True)

    async def unload_policy(self, policy_version: int) -> None:
        await self._engine.unload_policy(policy_version)

    async def release(self, session: str) -> None:
        await self._engine.release(session)

    async def aclose(self) -> None:
        """Break off what is under way and end the servers; closing twice is fine."""
        if self._lost is None:
            self._lost = EngineError("the engine was closed")
        self._note_change()
        try:
            await end_tasks(*self._watching)
        finally:
            try:
                await self._engine.aclose()
            finally:
                await each_to_its_end(*(server.stop() for server in self._servers))

    async def _ask(self, ask: Callable[[], Awaitable[Value]], *, of_all: bool = False) -> Value:
        """Return what `ask` returns; ask again where a server ended meanwhile."""
        while True:
            if not (up := self._all_up if of_all else self._some_up).is_set():
                what = f"engine: the new start of a server of the {self._spec.role}"
                async with within(self._again_limit_s, what):
                    await up.wait()
            if self._lost is not None:
                raise self._lost
            num_ends = self._num_ends
            try:
                return await ask()
            except (EngineError, DeadlineError) as error:
                if not await self._has_ended_since(num_ends, error):
                    raise

    async def _has_ended_since(self, num_ends: int, error: RnowError) -> bool:
        """Find out whether a request failed because of its server and not because of itself.

        A server that serves any request from now on is alive, however long this one has waited: it
        may have more to do than it can within the deadline.
        """
        since = time.monotonic()
        async with self._checking:
            self._note_ends()
            if self._num_ends != num_ends:
                return True
            if not _may_be_the_servers(error):
                return False
            limit_s = min(_ANSWER_LIMIT_S, self._spec.request_timeout_s)
            await side_by_side(
                *(
                    self._give_up_unless_it_answers(server, error, since=since, limit_s=limit_s)
                    for place, server in enumerate(self._servers)
                    if self._is_up[place]
                    and self._engine.at(server.url).client.answered_at <= since
                )
            )
            self._note_ends()
            return self._num_ends != num_ends

    async def _give_up_unless_it_answers(
        self, server: Server, error: RnowError, *, since: float, limit_s: float
    ) -> None:
        client = self._engine.at(server.url).client
        with suppress(EngineError, TimeoutError):
            async with asyncio.timeout(limit_s):
                await server.answer_once(client)
        if client.answered_at > since:  # also where somebody else has asked meanwhile
            return
        try:
            await server.give_up(f"does not sample one token within {limit_s:g} s, after: {error}")
        except DeadlineError as undead:
            self._lost = undead
            self._note_change()
            raise

    def _note_ends(self) -> None:
        """Take servers that have ended out of use, each end once."""
        for place, server in enumerate(self._servers):
            if self._is_up[place] and server.why_ended() is not None:
                self._is_up[place] = False
                self._num_ends += 1
                self._engine.at(server.url).is_open = False
        self._note_change()

    def _note_change(self) -> None:
        for event, holds in ((self._some_up, any(self._is_up)), (self._all_up, all(self._is_up))):
            # Whoever waits is to hear that there is nothing to wait for.
            event.set() if holds or self._lost is not None else event.clear()

    def _watch_in_task(self, place: int) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._watch(place), name=f"watch of server {place}")

        def ended(task: "asyncio.Task[None]") -> None:
            if not task.cancelled() and task.exception() is not None:
                self._lost = task.exception()
                self._note_change()

        task.add_done_callback(ended)
        return task

    async def _watch(self, place: int) -> None:
        """Start the server at `place` again whenever it ends; raise where that is no use."""
        while True:
            server = self._servers[place]
            sentence = await server.wait_ended()
            self._note_ends()
            while not self._is_up[place]:
                self._deaths.count(sentence)
                self._say(f"{sentence}\nIt is started again; cut requests are sent again")
                try:
                    async with self._deaths.starting:
                        await self._start_again(place)
                except (EngineError, DeadlineError) as error:
                    sentence = str(error)

    async def _start_again(self, place: int) -> None:
        former = self._servers[place]
        server = await self._start(former.settings, again=former, on_progress=self._on_progress)
        self._servers[place] = server  # what follows is asked of this one
        replica = self._engine.at(server.url)
        await replica.client.aclose()  # the address may lead to another machine now
        replica.client = self._client_of(server)
        try:
            await self._engine.restore(server.url)
            await self._check_probe(server)
        except RnowError:
            await server.stop()
            raise
        self._engine.at(server.url).is_open = True
        self._is_up[place] = True
        self._note_change()
        self._say(f"the vLLM server of the {server.settings.role} serves again")

    async def _check_probe(self, server: Server) -> None:
        if self._probe is None:
            return
        request, before = self._probe
        (scores,) = await self._engine.probe(request, url=server.url)
        difference = float(np.abs(scores.logprobs - before.logprobs).mean())
        if not difference <= self._spec.tolerance:
            raise PublicationError(
                f"the vLLM server of the {server.settings.role} was started again and does not "
                f"hold version {request.policy_version}: on a fixed sequence it is "
                f"{difference:.3g} nats a token away from what it answered before "
                f"(tolerance {self._spec.tolerance:g})"
            )
        if self._samples:
            await self._check_sampling(server)

    async def _check_sampling(self, server: Server) -> None:
        """Have the server score what it samples: the trainer is not asked a second time."""
        (sampled,) = await self._engine.probe_sampling(self._samples, url=server.url)
        for one in (sampled.alone, *sampled.together):
            request = ScoreRequest(
                token_ids=(*one.prompt_ids.tolist(), *one.token_ids.tolist()),
                start=len(one.prompt_ids),
                policy_version=one.policy_version,
            )
            (scores,) = await self._engine.probe(request, url=server.url)
            difference = float(np.abs(scores.logprobs - one.logprobs).mean())
            if not difference <= self._spec.tolerance:
                raise PublicationError(
                    f"the vLLM server of the {server.settings.role} was started again and does "
                    f"not sample from version {one.policy_version}: what it says of sampled tokens "
                    f"is {difference:.3g} nats a token away from its own scores of them "
                    f"(tolerance {self._spec.tolerance:g})"
                )

    def _client_of(self, server: Server) -> VllmClient:
        return server.client(partial(self._why_ended, server.url))

    def _why_ended(self, url: str) -> str | None:
        return next(server.why_ended() for server in self._servers if server.url == url)


def _may_be_the_servers(error: RnowError) -> bool:
    """Whether `error` may come of a server that is gone, and not of what it was asked."""
    if isinstance(error, HttpError):
        return error.status >= 500
    return isinstance(error, UnreachableError | DeadlineError)
