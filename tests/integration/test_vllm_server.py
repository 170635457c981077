"""A real vLLM server's end: its own, ours, and that of the process that started it."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from processes import wait_until
from vllm_real import alive_in_group, copy_model, server_settings, vllm_python

from rnow.engines.vllm.server import VllmServer
from rnow.errors import DeadlineError, EngineError

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


async def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    settings = server_settings(
        copy_model("student", tmp_path),
        tmp_path / "logs" / "student.log",
        args={"no_such_flag": True},
    )
    with pytest.raises(EngineError) as caught:
        await VllmServer.start(settings)
    assert str(caught.value) == (
        "the vLLM server of the student has ended (exit code 2); "
        f"{settings.log_file} ends with:\n"
        "  api_server.py: error: unrecognized arguments: --no-such-flag"
    )


async def test_an_interpreter_without_vllm_says_so(tmp_path: Path) -> None:
    settings = replace(
        server_settings(copy_model("student", tmp_path), tmp_path / "log"), python=sys.executable
    )
    with pytest.raises(EngineError, match=r"No module named 'vllm'\)?$") as caught:
        await VllmServer.start(settings)
    assert "the vLLM server of the student has ended (exit code 1); " in str(caught.value)


async def test_a_start_that_takes_too_long_leaves_nothing_behind(tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings = server_settings(copy_model("student", tmp_path), log, start_timeout_s=3.0)
    with pytest.raises(DeadlineError) as caught:
        await VllmServer.start(settings)
    assert str(caught.value).startswith(
        "engine.start of the student's vLLM server has waited 3 s, the limit of "
        f"engine.start_timeout_s; {log} ends with:\n  "
    )
    listing = subprocess.run(["ps", "-A", "-o", "command="], capture_output=True, text=True)
    assert str(tmp_path) not in listing.stdout


def test_a_killed_controller_takes_the_server_and_its_workers_along(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"""
        import asyncio, sys
        from pathlib import Path
        from rnow.engines.vllm.server import VllmServer, VllmServerSettings

        settings = VllmServerSettings(
            role="student", model=Path({str(copy_model("student", tmp_path))!r}),
            log_file=Path({str(log)!r}), max_model_len=512, python={vllm_python()!r},
            dtype="float32", deterministic=False, start_timeout_s=900.0)
        asyncio.run(VllmServer.start(settings))
    """
    controller = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    # Until vLLM has processes of its own, which it starts after minutes on a busy machine.
    wait_until(lambda: log.exists() and "EngineCore pid=" in log.read_text())
    group = group_of_child(controller.pid)
    assert len(alive_in_group(group)) >= 3
    os.kill(controller.pid, signal.SIGKILL)
    controller.wait()
    wait_until(lambda: alive_in_group(group) == [])


def group_of_child(pid: int) -> int:
    listing = subprocess.run(
        ["ps", "-A", "-o", "ppid=,pgid="], capture_output=True, text=True, check=True
    )
    pairs = [tuple(map(int, line.split())) for line in listing.stdout.splitlines()]
    return next(group for parent, group in pairs if parent == pid)
