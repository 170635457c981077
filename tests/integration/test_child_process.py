"""Child processes: real ones, ended in every way there is."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from processes import PATIENCE_S, wait_until
from vllm_real import alive_in_group

from rnow.runtime.child_process import ChildProcess, how_it_ended

FAMILY = "sleep 1000 & echo started; wait"  # a shell and its child
STUBBORN = "trap '' TERM; sleep 1000 & echo started; while :; do wait; done"


async def start(folder: Path, script: str) -> ChildProcess:
    log = folder / "log"
    process = await ChildProcess.start(
        ["/bin/sh", "-c", script], environment=dict(os.environ), log_file=log
    )
    await asyncio.to_thread(wait_until, lambda: "started" in log.read_text())
    return process


async def test_the_command_leads_its_group_and_is_what_is_waited_for(tmp_path: Path) -> None:
    process = await start(tmp_path, "echo started; exit 3")
    assert await process.wait() == 3
    assert process.status == 3
    assert how_it_ended(3) == "exit code 3"
    await process.end(grace_s=0)
    wait_until(lambda: alive_in_group(process.pid) == [])


async def test_a_command_may_answer_to_where_its_input_comes_from(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = await ChildProcess.start(
            ["/bin/sh", "-c", "echo to the log >&2; read line; echo got $line; exec 1>&2; sleep 9"],
            environment=dict(os.environ),
            log_file=tmp_path / "log",
            stdin=theirs.fileno(),
            answers_to_stdin=True,
        )
    with ours:
        ours.settimeout(10)
        ours.sendall(b"this\n")
        assert ours.recv(100) == b"got this\n"
        await process.end(grace_s=0)
        assert ours.recv(100) == b""  # nobody else holds it
    assert (tmp_path / "log").read_text() == "to the log\n"


@pytest.mark.parametrize(("script", "status"), [(FAMILY, -15), (STUBBORN, -9)])
async def test_an_end_leaves_nothing_of_the_group(tmp_path: Path, script: str, status: int) -> None:
    process = await start(tmp_path, script)
    assert len(alive_in_group(process.pid)) == 3  # command, child, guardian
    await process.end(grace_s=0.3)
    wait_until(lambda: alive_in_group(process.pid) == [])
    assert process.status == status
    await process.end(grace_s=0.3)  # twice is fine


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_group_ends_with_whoever_started_it(tmp_path: Path, how: signal.Signals) -> None:
    script = f"""
        import asyncio, os, sys
        from pathlib import Path
        from rnow.runtime.child_process import ChildProcess

        async def main():
            process = await ChildProcess.start(
                ["/bin/sh", "-c", {STUBBORN!r}], environment=dict(os.environ),
                log_file=Path({str(tmp_path / "log")!r}))
            print(process.pid, flush=True)
            await asyncio.sleep(1000)

        asyncio.run(main())
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        group = int(parent.stdout.readline())
    wait_until(lambda: "started" in (tmp_path / "log").read_text())
    assert len(alive_in_group(group)) == 3
    parent.send_signal(how)
    parent.wait(timeout=PATIENCE_S)
    wait_until(lambda: alive_in_group(group) == [])


async def test_a_command_that_does_not_exist_says_so(tmp_path: Path) -> None:
    process = await ChildProcess.start(
        ["/no/such/python"], environment=dict(os.environ), log_file=tmp_path / "log"
    )
    assert await process.wait() == 127
    assert "/no/such/python" in (tmp_path / "log").read_text()
    await process.end(grace_s=0)
