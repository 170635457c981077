"""A child process that does not outlive this one, however this one ends.

    this process ── a pipe that nobody writes to ──▶ guardian: reads it
    command, its children                              │ end of file: SIGKILL to the whole group
    └──────────── one process group, led by the command's process ────────────┘

A shell starts the guardian and then becomes the command, so the command may be any program. The
kernel closes the pipe when this process ends, by SIGKILL too: nothing has to run here for it. While
the guardian lives, the group's number is not given to anybody else. A child that leaves the group
(a daemon) is not reached. Works wherever there is a POSIX shell.
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rnow.runtime.deadline import within

# The lifeline comes where standard output will be: the numbers of other descriptors may have two
# digits, which not every shell can redirect.
_BECOME_GUARDED = (
    'exec 3<&1 1>&2; { read -r _ <&3; kill -KILL 0; } </dev/null & exec 3<&-; exec "$@"'
)
_AND_ANSWER = _BECOME_GUARDED.replace("exec 3<&-", "exec 3<&- 1>&0")
_KILL_LIMIT_S = 10.0  # SIGKILL to reaped: more means a process that the kernel cannot end


class ChildProcess:
    """One running command. It ends by itself, by `end`, or when this process does."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline_fd: int) -> None:
        self._process = process
        self._lifeline_fd = lifeline_fd

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_file: Path,
        folder: Path | None = None,
        stdin: int = asyncio.subprocess.DEVNULL,
        answers_to_stdin: bool = False,
    ) -> "ChildProcess":
        """Start `command` in `folder`; what it and its children print is appended to `log_file`.

        `answers_to_stdin`: its standard output goes to where its input comes from, a socket.
        """
        script = _AND_ANSWER if answers_to_stdin else _BECOME_GUARDED
        lifeline_theirs, lifeline_ours = os.pipe()
        try:
            with open(log_file, "ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *("/bin/sh", "-c", script, "guarded", *command),
                    stdin=stdin,
                    stdout=lifeline_theirs,
                    stderr=log,
                    cwd=folder,
                    env=environment,
                    start_new_session=True,  # Ctrl-C does not reach it
                )
        except BaseException:
            os.close(lifeline_ours)
            raise
        finally:
            os.close(lifeline_theirs)
        return cls(process, lifeline_ours)

    @property
    def pid(self) -> int:
        """The command's process, which is also the number of its group."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit code, minus the signal's number, or None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command's own process; nothing happens where that has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def end(self, *, grace_s: float) -> None:
        """Ask the command to end; after `grace_s` kill it, and whatever it has left behind."""
        try:
            if self.status is None:
                self.signal(signal.SIGTERM)
                with suppress(TimeoutError):
                    async with asyncio.timeout(grace_s):
                        await self._process.wait()
        finally:
            self._kill_group()
        await self.kill()

    async def kill(self) -> None:
        """Kill the whole group, now. Any number may ask for it at once, and each may be cancelled:
        each waits on its own.
        """
        self._kill_group()
        async with within(_KILL_LIMIT_S, f"the end of process {self.pid} after SIGKILL"):
            await self._process.wait()

    def _kill_group(self) -> None:
        if self._lifeline_fd < 0:
            return  # done before: with the guardian gone the number may be somebody else's
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        os.close(self._lifeline_fd)
        self._lifeline_fd = -1


def how_it_ended(status: int) -> str:
    """how_it_ended(-9) == "killed by SIGKILL"."""
    return f"exit code {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"
