"""engine.deterministic on vLLM's build for CPUs: neither neighbours nor a kill change a bit."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from vllm_pair import make_ids
from vllm_real import copy_model, server_settings

from rnow.engines.base import Completion, SampleRequest
from rnow.engines.vllm.engine import VllmEngine
from rnow.engines.vllm.server import VllmServer
from rnow.engines.vllm.starting import start_here

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def requests() -> list[SampleRequest]:
    """Two turns of one conversation, and others of other lengths."""
    prompts = [make_ids(40), [*make_ids(40), *make_ids(30)], make_ids(90), make_ids(7)]
    return [
        SampleRequest(
            token_ids=tuple(ids),
            session=str(number),
            max_tokens=60,
            stop_token_ids=(),
            seed=number,
            policy_version=0,
        )
        for number, ids in enumerate(prompts)
    ]


def bits(completions: list[Completion]) -> list[tuple[bytes, bytes]]:
    return [(one.token_ids.tobytes(), one.logprobs.tobytes()) for one in completions]


async def test_a_server_that_was_killed_samples_the_same_whatever_runs_beside_it(
    tmp_path: Path,
) -> None:
    model = copy_model("student", tmp_path)
    settings = server_settings(model, tmp_path / "log", deterministic=True, dtype="bfloat16")
    server = await VllmServer.start(settings)
    engine = VllmEngine([server.url], request_timeout_s=300)
    together = list(await asyncio.gather(*map(engine.sample, requests())))
    alone = [await engine.sample(request) for request in reversed(requests())][::-1]
    await engine.aclose()
    os.kill(server.pid, signal.SIGKILL)
    await server.wait_ended()
    again = await start_here(settings, again=server)
    assert again.url == server.url
    engine = VllmEngine([again.url], request_timeout_s=300)
    resumed = [await engine.sample(request) for request in requests()[2:]]
    await engine.aclose()
    await again.stop()
    assert bits(together) == bits(alone)
    assert bits(resumed) == bits(together)[2:]
    assert len(set(bits(together))) == 4
