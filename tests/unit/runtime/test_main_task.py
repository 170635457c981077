import signal
import subprocess
import sys

import pytest
from processes import PATIENCE_S

from rnow.runtime.main_task import run_main


class Large:
    """A result that counts how often it was written out."""

    num_written = 0

    def __repr__(self) -> str:
        self.num_written += 1
        return "large"


def test_a_large_result_is_not_written_out() -> None:
    large = Large()

    async def work() -> Large:
        return large

    assert run_main(work()) is large
    assert large.num_written == 0


def test_an_error_goes_up_as_it_is() -> None:
    async def work() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match=r"^as it is$"):
        run_main(work())


# A command that is at work in two tasks; the second takes long over its end.
COMMAND = """
import asyncio, sys
from rnow import cli
from rnow.runtime.main_task import run_main

async def beside():
    try:
        await asyncio.Event().wait()
    finally:
        print("tidying", flush=True)
        await asyncio.sleep(float(sys.argv[1]))
        print("tidied", flush=True)

async def work():
    task = asyncio.create_task(beside())
    await asyncio.sleep(0)
    print("begun", flush=True)
    await asyncio.Event().wait()

cli.app = lambda: run_main(work())
cli.main()
"""
# One that stands in Python's own end, after all that Python calls for a program.
ENDING = """
import os, sys, time

class Last:
    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"last\\n")
        sleep(0.5)

from rnow import cli
last = Last()
cli.app = lambda: sys.exit(143)
cli.main()
"""
STOPS = [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")]


def begun(*words: str, program: str = COMMAND, line: str = "begun") -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"{line}\n"
    return process


@pytest.mark.parametrize(("number", "name"), STOPS)
def test_a_first_signal_lets_all_end(number: signal.Signals, name: str) -> None:
    process = begun("0.1")
    process.send_signal(number)
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert said == "tidying\ntidied\n"
    # Typer says it of Ctrl-C, and ends with 130: here its place is taken.
    assert errors == ("" if number == signal.SIGINT else f"Stopped by {name}\n")
    assert process.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_amid_the_end_is_the_end_and_no_word_of_it(number: signal.Signals) -> None:
    process = begun("600")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "tidying\n"
    process.send_signal(number)
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert (said, errors) == ("", "")
    assert process.returncode == 128 + number


def test_a_signal_amid_python_s_own_end_takes_no_exit_code() -> None:
    process = begun(program=ENDING, line="last")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert errors == "Stopped by SIGTERM\n"
    assert process.returncode == 143


# Its tidying up fails, and the command would go on after an error of its own.
FAILING = """
import asyncio
from rnow import cli
from rnow.runtime.main_task import run_main

async def work():
    print("begun", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        raise ValueError("as it tidied up")

def command():
    try:
        run_main(work())
    except ValueError:
        print("goes on", flush=True)

cli.app = command
cli.main()
"""
# As a script has it that starts a program in the background.
IGNORING = """
import asyncio, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from rnow import cli
from rnow.runtime.main_task import run_main
from rnow.runtime.signals import StopRequest

async def work():
    with StopRequest() as stop:
        print("begun", flush=True)
        await stop.cut(asyncio.sleep(1))
    print("done", flush=True)

cli.app = lambda: run_main(work())
cli.main()
"""


def test_a_stop_that_meets_an_error_is_a_stop() -> None:
    process = begun(program=FAILING)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert (said, errors, process.returncode) == ("", "Stopped by SIGTERM\n", 143)


def test_ctrl_c_that_came_ignored_stays_so() -> None:
    process = begun(program=IGNORING)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert (said, errors, process.returncode) == ("done\n", "", 0)
