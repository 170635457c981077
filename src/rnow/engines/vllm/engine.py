"""`VllmEngine`: an `Engine` on vLLM servers, token ids in, token ids out.

    engine.py         the Engine: policies, sessions, deadlines
    replicas.py       which server takes a request, and one request to its token route
    cutting.py        one generation with an end
    http.py           one server: pool, retries, errors that name server, route and status
    weight_routes.py  routes that change weights
    wire.py           bodies of requests; answers, read without trust
    starting.py       the first start of all servers of a role
    server.py         a server as a child process (command.py, address.py, log.py)
    served.py         servers of our own under the Engine, started again when they end (deaths.py)
    untied.py         model folders in the form in which a server renews the LM head

Weights follow the training in one of two ways. An adapter is loaded beside the others under a name
that no other load has had, because vLLM's prefix cache knows weights by name; sessions stay on the
version that they began with. A whole model replaces the weights in place, so nothing may be under
way meanwhile, and the cache is emptied.

Log-probabilities of sampled tokens are at temperature 1 whatever the sampling's is: that is vLLM's
`--logprobs-mode raw_logprobs`, its default.
"""

import asyncio
import logging
import secrets
import shutil
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rnow.engines.base import Completion, Sampled, SampleRequest, ScoreRequest, Scores
from rnow.engines.vllm.cutting import sample_within
from rnow.engines.vllm.http import PAUSES_S, VllmClient
from rnow.engines.vllm.replicas import (
    Replica,
    Replicas,
    one_more,
    sample_apart,
    score_at,
)
from rnow.engines.vllm.untied import is_tied, untied_folder
from rnow.engines.vllm.weight_routes import load_adapter, reload_weights, unload_adapter
from rnow.errors import DeadlineError, EngineError, ModelError
from rnow.runtime.deadline import within
from rnow.runtime.side_by_side import end_tasks, side_by_side

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Policy:
    """Weights that the servers hold."""

    version: int
    path: Path | None  # None: what the servers were started with
    adapter: str | None  # its name at the servers; None: the base model's weights
    sessions: set[str] = field(default_factory=set)


class VllmEngine:
    """An `Engine` over HTTP, on one or several servers with the same weights.

    engine = VllmEngine([server.url], request_timeout_s=600.0)
    completion = await engine.sample(SampleRequest(token_ids=ids, …))
    await engine.aclose()
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        request_timeout_s: float,
        untied: Path | None = None,
        why_ended: Callable[[str], str | None] = lambda url: None,
        pauses_s: Sequence[float] = PAUSES_S,
        clients: Sequence[VllmClient] = (),
    ) -> None:
        """`why_ended(url)`: a sentence once the server there is known to have ended.

        `clients`: in place of `urls`, of servers that are not reached by HTTP from here.

        `untied`: the servers were started on an untied folder (rnow.engines.vllm.untied), and tied
        models are given to them in that form, through folders under this one.
        """
        if not urls and not clients:
            raise EngineError("an engine needs the url of at least one vLLM server")
        of_urls = [
            VllmClient(url, why_ended=partial(why_ended, url), pauses_s=pauses_s) for url in urls
        ]
        self._replicas = Replicas([*of_urls, *clients])
        self._request_timeout_s = request_timeout_s
        self._untied = untied
        self._policies = {0: _Policy(0, None, None)}
        self._retired: set[_Policy] = set()  # sessions on them go on
        self._replaced: set[int] = set()  # versions that a whole model took the place of
        self._of_session: dict[str, _Policy] = {}
        self._unloading: set[asyncio.Task[None]] = set()
        self._has_start_weights = True

    async def sample(self, request: SampleRequest) -> Completion:
        """Continue `token_ids`, on the server that has the session's earlier ones in its cache.

        At the deadline the generation is cut and what there is returned, as LENGTH.
        """
        policy = self._policy_of(request.session, request.policy_version)
        replica = self._replicas.for_session(request.session)
        what = f"engine.sample of session {request.session} at {replica.client.url}"
        with one_more(replica):
            return await sample_within(
                self._request_timeout_s, what, replica, request, adapter=policy.adapter
            )

    async def score(self, request: ScoreRequest) -> Scores:
        """Score a whole sequence in one request, at whichever server has the least to do."""
        adapter = self._adapter_to_score(request.policy_version)
        replica = self._replicas.least_loaded()
        what = f"engine.score of {len(request.token_ids)} tokens at {replica.client.url}"
        async with within(self._request_timeout_s, what):
            return await score_at(replica, request, adapter=adapter)

    async def probe(self, request: ScoreRequest, *, url: str | None = None) -> tuple[Scores, ...]:
        """Score at every server, or at the one with this `url`."""
        adapter = self._adapter_to_score(request.policy_version)
        replicas = self._replicas.all if url is None else (self._replicas.at(url),)
        what = f"engine.probe of version {request.policy_version}"
        async with within(self._request_timeout_s, what):
            scores = await side_by_side(
                *(score_at(replica, request, adapter=adapter) for replica in replicas)
            )
        return tuple(scores)

    async def probe_sampling(
        self, requests: Sequence[SampleRequest], *, url: str | None = None
    ) -> tuple[Sampled, ...]:
        """Sample at every server, or at the one with this `url`; sessions have no part in it."""
        version = requests[0].policy_version
        adapter = self._loaded(version).adapter
        replicas = self._replicas.all if url is None else (self._replicas.at(url),)
        async with within(self._request_timeout_s, f"engine.probe_sampling of version {version}"):
            sampled = await side_by_side(
                *(sample_apart(replica, requests, adapter=adapter) for replica in replicas)
            )
        return tuple(sampled)

    async def load_policy(self, path: Path, policy_version: int) -> None:
        """Load an adapter beside what is there, or replace the weights by a whole model's.

        The folder has to stay as long as the version is loaded: a server reads an adapter again
        that it has dropped from memory, and one that was restarted reads what `restore` names.
        """
        what = f"engine.load_policy of version {policy_version}"
        async with within(self._request_timeout_s, what):
            if (path / "adapter_config.json").exists():
                await self._load_adapter(path, policy_version)
            elif (path / "config.json").exists():
                await self._load_model(path, policy_version)
            else:
                raise EngineError(
                    f"{path} holds neither adapter_config.json nor config.json: no weights to load"
                )

    async def unload_policy(self, policy_version: int) -> None:
        """Take no new session on this version; those that began on it end on it."""
        if policy_version in self._replaced - self._policies.keys():
            self._replaced.discard(policy_version)
            return
        self._retire(self._loaded(policy_version))
        del self._policies[policy_version]

    async def release(self, session: str) -> None:
        self._replicas.release(session)
        policy = self._of_session.pop(session, None)
        if policy is not None:
            policy.sessions.discard(session)
            if policy in self._retired:
                self._retire(policy)

    def at(self, url: str) -> Replica:
        """Return the server at `url`, for whoever watches it."""
        return self._replicas.at(url)

    async def restore(self, url: str) -> None:
        """Give a server that was started anew at `url` every version that the others hold."""
        replica = self._replicas.at(url)
        replica.forget()
        async with within(self._request_timeout_s, f"engine.restore of {url}"):
            for policy in (*self._policies.values(), *self._retired):
                if policy.adapter is not None:
                    assert policy.path is not None
                    await load_adapter(replica.client, policy.adapter, policy.path)
                elif policy.path is not None:
                    await reload_weights(replica.client, policy.path)

    async def aclose(self) -> None:
        """Break off what is under way; the servers run on, they are not the engine's."""
        await end_tasks(*self._unloading)
        for replica in self._replicas.all:
            await replica.client.aclose()

    async def _load_adapter(self, path: Path, version: int) -> None:
        adapter = f"policy-{version}-{secrets.token_hex(4)}"
        await self._on_all(lambda replica: load_adapter(replica.client, adapter, path.absolute()))
        before = self._policies.get(version)
        self._policies[version] = _Policy(version, path.absolute(), adapter)
        if before is not None:
            self._retire(before)

    async def _load_model(self, path: Path, version: int) -> None:
        if self._replicas.num_requests:
            raise EngineError(
                f"{self._replicas.num_requests} requests are under way: a whole model replaces the "
                "weights in place, between steps only (trainer.max_policy_lag 0)"
            )
        path = await asyncio.to_thread(self._form_to_load, path.absolute(), version)
        former = [p.path for p in self._policies.values() if p.adapter is None]
        self._replaced |= {v for v, p in self._policies.items() if p.adapter is None}
        # From here on, and also if it fails half-way, nothing older can be sampled from.
        self._policies = {v: p for v, p in self._policies.items() if p.adapter is not None}
        self._of_session = {s: p for s, p in self._of_session.items() if p.adapter is not None}
        self._has_start_weights = False
        await self._on_all(lambda replica: reload_weights(replica.client, path))
        self._policies[version] = _Policy(version, path, None)
        for folder in former:
            if folder is not None and folder != path:
                await side_by_side(*(one.client.forget(folder) for one in self._replicas.all))
                await asyncio.to_thread(self._forget_form, folder)

    def _form_to_load(self, path: Path, version: int) -> Path:
        try:
            if self._untied is None or not is_tied(path):
                return path
            return untied_folder(path, self._untied.absolute() / f"policy-{version}")
        except ModelError as error:
            raise EngineError(str(error)) from error

    def _forget_form(self, folder: Path) -> None:
        if self._untied is not None and folder.parent == self._untied.absolute():
            shutil.rmtree(folder)

    def _policy_of(self, session: str, version: int) -> _Policy:
        """Return the weights that the session is on; the first request of a session decides."""
        policy = self._of_session.get(session)
        if policy is None or policy.version != version:
            begun = self._loaded(version)
            if policy is not None:
                policy.sessions.discard(session)
            policy = self._of_session[session] = begun
            policy.sessions.add(session)
        return policy

    def _adapter_to_score(self, version: int | None) -> str | None:
        if version is None:
            if not self._has_start_weights:
                raise EngineError("the weights that the servers were started with are replaced")
            return None
        return self._loaded(version).adapter

    def _loaded(self, version: int) -> _Policy:
        if version not in self._policies:
            loaded = ", ".join(map(str, sorted(self._policies))) or "none"
            raise EngineError(f"policy version {version} is not loaded (loaded: {loaded})")
        return self._policies[version]

    def _retire(self, policy: _Policy) -> None:
        """Unload weights that no session is on; else remember to."""
        if policy.sessions:
            self._retired.add(policy)
            return
        self._retired.discard(policy)
        if policy.adapter is not None:
            task = asyncio.create_task(self._unload(policy.adapter, policy.path))
            self._unloading.add(task)
            task.add_done_callback(self._unloading.discard)

    async def _unload(self, adapter: str, path: Path | None) -> None:
        try:
            async with within(self._request_timeout_s, f"engine.unload_policy of {adapter}"):
                await self._on_all(lambda replica: unload_adapter(replica.client, adapter))
                if path is not None:
                    await self._on_all(lambda replica: replica.client.forget(path))
        except (EngineError, DeadlineError) as error:
            # What stays costs memory alone: its name is never asked for again.
            logger.warning("an old adapter stays loaded: %s", error)

    async def _on_all(self, do: Callable[[Replica], Coroutine[Any, Any, object]]) -> None:
        await side_by_side(*(do(replica) for replica in self._replicas.all))
