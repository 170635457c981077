"""How full and how busy the machine's GPUs are, asked of nvidia-smi every few seconds."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from rnow.plan.devices import smi_rows

EVERY_S = 5.0
DEADLINE_S = 5.0
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
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
    while True:
        process = await asyncio.create_subprocess_exec(
            program,
            _QUERY,
            "--format=csv,noheader,nounits",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(DEADLINE_S):
                output, _ = await process.communicate()
        except TimeoutError:
            return  # a wedged driver: nothing more is asked of it
        finally:
            with suppress(ProcessLookupError):
                process.kill()
        tell(read_use(output.decode(errors="replace")))
        await asyncio.sleep(EVERY_S)
