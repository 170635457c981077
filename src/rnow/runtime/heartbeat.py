"""What a live run is doing right now, for whoever asks from another process: `rnow status`.

The run writes status.json every two seconds, from its event loop: an old file means a loop that
does not turn. Where it stands still for a minute, the stacks of all threads go to controller.log
without its help.

    {"pid": 4711, "time": 1789.5, "step": 3, "num_steps": 20, "stage": "rollout", "stage_s": 12.1,
     "done": 5, "total": 64, "progress_s": 3.0,
     "waits": [{"what": "engine.sample of session 3/5/0", "waited_s": 2.1, "limit_s": 600}], …}
"""

import asyncio
import faulthandler
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from rnow.runtime.deadline import waits

EVERY_S = 2.0
STANDSTILL_S = 60.0
MAX_WAITS = 5


@asynccontextmanager
async def beating(
    file: Path,
    *,
    log_file: Path,
    describe: Callable[[], Mapping[str, Any]],
    standstill_s: float = STANDSTILL_S,
) -> AsyncIterator[None]:
    """Keep `file` up to date while the block runs; `describe` says what the run is at."""
    with log_file.open("a", encoding="utf-8") as log:
        task = asyncio.create_task(
            _beat(file, log.fileno(), describe, standstill_s), name="heartbeat"
        )
        try:
            yield
        finally:
            task.cancel()
            faulthandler.cancel_dump_traceback_later()
            file.unlink(missing_ok=True)


async def _beat(
    file: Path, log: int, describe: Callable[[], Mapping[str, Any]], standstill_s: float
) -> None:
    while True:
        faulthandler.dump_traceback_later(standstill_s, file=log)
        found = waits()
        status = {
            "pid": os.getpid(),
            "time": time.time(),
            **describe(),
            "waits": [
                {"what": wait.what, "waited_s": round(wait.waited_s, 1), "limit_s": wait.limit_s}
                for wait in found[:MAX_WAITS]
            ],
            "num_waits": len(found),
        }
        # A full disk is told by what must be on it; this file need not be.
        with suppress(OSError):
            temporary = file.with_name(f".{file.name}.tmp")
            temporary.write_text(json.dumps(status) + "\n", encoding="utf-8")
            temporary.replace(file)
        await asyncio.sleep(EVERY_S)
