"""vLLM's routes that change what a server samples from: adapters by name, weights in place."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rnow.engines.vllm.http import HttpError, VllmClient
from rnow.errors import EngineError

# A network file system may show a server what was written here only after a while.
_VISIBLE_PAUSES_S = (0.1, 0.4, 1.0, 2.0)
# What a server needs whose routes for weights are missing.
ADVICE = (
    "start that server with --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and "
    "VLLM_SERVER_DEV_MODE=1"
)


async def load_adapter(
    client: VllmClient, adapter: str, path: Path, *, pauses_s: Sequence[float] = _VISIBLE_PAUSES_S
) -> None:
    body = {"lora_name": adapter, "lora_path": await client.deliver(path)}
    for pause_s in (*pauses_s, None):
        try:
            await client.post("/v1/load_lora_adapter", body)
            return
        except HttpError as error:
            # The name is of this load alone: an earlier attempt arrived, its answer did not.
            if "has already been loaded" in error.text:
                return
            if pause_s is None or "No adapter found" not in error.text:
                raise _with_advice(error) from error
        await asyncio.sleep(pause_s)


async def unload_adapter(client: VllmClient, adapter: str) -> None:
    try:
        await client.post("/v1/unload_lora_adapter", {"lora_name": adapter})
    except HttpError as error:
        if "cannot be found" not in error.text:  # gone is what it should be
            raise


async def reload_weights(client: VllmClient, path: Path) -> None:
    body = {"method": "reload_weights", "kwargs": {"weights_path": await client.deliver(path)}}
    try:
        await client.post("/collective_rpc", body)
        answer = await client.post("/reset_prefix_cache", {})
    except HttpError as error:
        raise _with_advice(error) from error
    if isinstance(answer, dict) and answer.get("success") is False:
        raise EngineError(
            f"{client.url}/reset_prefix_cache did not empty the cache: what it holds was "
            "computed with the former weights"
        )


def _with_advice(error: HttpError) -> EngineError:
    if error.status != 404 or "Not Found" not in error.text:
        return EngineError(str(error))
    return EngineError(f"{error}; {ADVICE}")
