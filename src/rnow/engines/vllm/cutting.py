"""One generation has an end: at its deadline it is cut, and what it has sampled is kept.

A runaway of tens of thousands of tokens would otherwise be broken off, begun again from its prompt,
and broken off again. vLLM answers a request that is aborted by name with what it has by then; an
abort that nobody here asked for (a server on its way out) is no answer, and the request is sent
again.
"""

import asyncio

from rnow.engines.base import Completion, SampleRequest
from rnow.engines.vllm import wire
from rnow.engines.vllm.replicas import Replica, sample_at
from rnow.errors import DeadlineError, EngineError
from rnow.runtime.deadline import report_breach, waiting

_GRACE_S = 10.0  # for the answer of a server that was told to cut


async def sample_within(
    limit_s: float, what: str, replica: Replica, request: SampleRequest, *, adapter: str | None
) -> Completion:
    """Sample; after `limit_s` return what there is, as LENGTH.

    DeadlineError where a server that was told to cut gives nothing within seconds.
    """
    cut = wire.Cut()
    sampling = asyncio.ensure_future(sample_at(replica, request, adapter=adapter, cut=cut))
    sampling.add_done_callback(_take_note)
    try:
        with waiting(what, limit_s=limit_s):
            done, _ = await asyncio.wait({sampling}, timeout=limit_s)
        if done:
            return sampling.result()
        cut.is_asked = True
        try:
            async with asyncio.timeout(_GRACE_S):
                await replica.client.post(wire.ABORT_ROUTE, wire.abort_body(cut))
                return await sampling
        except (TimeoutError, EngineError) as error:
            message = f"{what} has waited {limit_s:g} s"
            report_breach(message)
            raise DeadlineError(message) from error
    finally:
        sampling.cancel()


def _take_note(task: "asyncio.Task[Completion]") -> None:
    """Hear of the error of a request that nobody waits for any more; asyncio would log it."""
    if not task.cancelled():
        task.exception()
