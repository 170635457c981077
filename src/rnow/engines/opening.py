"""From what is known of an engine to the engine: loads a model, starts servers, or finds them."""

import asyncio
import shutil
from collections.abc import Callable

from rnow.engines.base import Engine
from rnow.engines.spec import EngineSpec
from rnow.engines.vllm.deaths import Deaths
from rnow.engines.vllm.engine import VllmEngine
from rnow.engines.vllm.served import ServedEngine
from rnow.engines.vllm.server import Progress
from rnow.engines.vllm.starting import Starter, start_here
from rnow.engines.vllm.untied import untied_folder


async def open_engine(
    spec: EngineSpec,
    *,
    deaths: Deaths,
    say: Callable[[str], None],
    on_progress: Progress | None = None,
    start: Starter = start_here,
) -> Engine:
    """Start or load what `spec` says; `start` starts servers. Whoever has the engine closes it."""
    if spec.urls:
        return VllmEngine(spec.urls, request_timeout_s=spec.request_timeout_s, untied=spec.untied)
    if spec.servers:
        if spec.untied is not None:
            # What an earlier process left there is of no use to these servers.
            await asyncio.to_thread(shutil.rmtree, spec.untied, ignore_errors=True)
            await asyncio.to_thread(untied_folder, spec.model, spec.servers[0].model)
        return await ServedEngine.start(
            spec, deaths=deaths, say=say, on_progress=on_progress, start=start
        )
    from rnow.engines.local.engine import LocalEngine

    return await asyncio.to_thread(
        LocalEngine,
        spec.model,
        dtype=spec.dtype,
        device=spec.device,
        request_timeout_s=spec.request_timeout_s,
        window=spec.window,
    )
