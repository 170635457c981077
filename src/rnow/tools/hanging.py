"""Where the user's file hangs that a process imports: the process writes its stacks to its log.

The innermost line of the project's own is the place, whatever library it waits in.
"""

import asyncio
import re
import signal
from pathlib import Path

from rnow.runtime.child_process import ChildProcess

STACKS_SIGNAL = signal.SIGUSR1  # writes the stacks of all threads to the log
_WRITING_S = 3.0  # at most, on a busy machine
_LOOK_S = 0.1
_END = "in _run_module_as_main"  # of the main thread's stack


async def place_of_hang(
    process: ChildProcess, log_file: Path, *, since: int, folder: Path
) -> str | None:
    """Return "tools.py:12", a file of `folder`; None: `process` waits for something else.

    `since`: where in the log its own words begin.
    """
    process.signal(STACKS_SIGNAL)
    text = ""
    for _ in range(round(_WRITING_S / _LOOK_S)):
        await asyncio.sleep(_LOOK_S)
        text = log_file.read_bytes()[since:].decode(errors="replace")
        if _END in text:
            break
    stacks = re.split(r"^(?:Current thread|Thread) .*$", text, flags=re.MULTILINE)
    main = next((stack for stack in reversed(stacks) if _END in stack), "")
    for name, line in re.findall(r'^  File "(.+)", line (\d+) in ', main, flags=re.MULTILINE):
        file = Path(name)
        if file.is_relative_to(folder.resolve()) and "site-packages" not in file.parts:
            return f"{file.relative_to(folder.resolve())}:{line}"
    return None
