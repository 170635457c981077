import os
import signal
import subprocess
import sys

from processes import wait_until_held

PROGRAM = """
from rnow.runtime.kill_points import point
for number in range(4):
    print(number, flush=True)
    point("other")
    point("here")
"""


def test_a_process_stands_still_at_its_point_then_goes_on_and_dies_at_another() -> None:
    environ = {**os.environ, "RNOW_HOLD_AT": "here:2", "RNOW_KILL_AT": "other:4"}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdout is not None
        wait_until_held(process.pid)
        assert os.read(process.stdout.fileno(), 99) == b"0\n1\n"
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == b"2\n3\n"
        assert process.wait() == -signal.SIGKILL
