"""How full and how busy the machine's GPUs are, asked of nvidia-smi every few seconds."""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from rnow.errors import DeadlineError
from rnow.plan.devices import smi_rows
from rnow.runtime.deadline import within
from rnow.runtime.side_by_side import end_tasks

EVERY_S = 5.0
DEADLINE_S = 5.0
_KILL_S = 10.0  # a busy machine takes seconds over it
_QUERY = "--query-gpu=index,memory.used,memory.total,utilization.gpu"

GpuUse = dict[str, int]


@asynccontextmanager
async def watching_gpus(tell: Callable[[list[GpuUse]], None]) -> AsyncIterator[None]:
    """Tell of all GPUs while the block runs; of none where there is no nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        yield
        return
    task = asyncio.create_task(_watch(program, tell), name="GPU use")
    try:
        yield
    finally:
        await end_tasks(task)


def read_use(text: str) -> list[GpuUse]:
    """Read nvidia-smi's lines; what it does not know of a GPU, as [N/A], leaves that one out.

    >>> read_use("0, 71200, 81559, 98")
    [{'index': 0, 'used_mib': 71200, 'total_mib': 81559, 'use_percent': 98}]
    """
    names = ("index", "used_mib", "total_mib", "use_percent")
    return [
        dict(zip(names, map(int, row), strict=True))
        for row in smi_rows(text.splitlines(), num_columns=len(names))
        if all(part.isdigit() for part in row)
    ]


async def _watch(program: str, tell: Callable[[list[GpuUse]], None]) -> None:
    with suppress(DeadlineError):  # a wedged driver: nothing more is asked of it
        while True:
            tell(read_use(await _ask(program)))
            await asyncio.sleep(EVERY_S)


async def _ask(program: str) -> str:
    # A file and not a pipe, which whatever holds its other end would keep open.
    with tempfile.TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *(program, _QUERY, "--format=csv,noheader,nounits"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            async with within(DEADLINE_S, "the answer of nvidia-smi"):
                await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                with suppress(TimeoutError):  # in the kernel no signal reaches it
                    async with asyncio.timeout(_KILL_S):
                        await process.wait()
        output.seek(0)
        return output.read().decode(errors="replace")
