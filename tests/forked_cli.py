"""`rnow`, many times, without importing torch and its kind each time: a fork for every call.

A program: reads one JSON object a line, {"words": […], "environ": {…}, "folder": DIR,
"stdout": FILE, "stderr": FILE}, and answers {"status": N} once that call has ended, where N is its
exit code or minus the signal that killed it. Each call is a whole process with a command line, an
environment, signals and an end of its own.
"""

import json
import os
import signal
import sys
from typing import Any

import peft  # noqa: F401
import transformers  # noqa: F401

import rnow.training.session  # noqa: F401
from rnow.cli import main

LIMIT_S = 240


def become_rnow(order: dict[str, Any]) -> None:
    signal.alarm(LIMIT_S)  # a call that hangs ends with status -14
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environ"])
    for number, name in enumerate((os.devnull, order["stdout"], order["stderr"])):
        # Appending, so that both may be one file.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
        os.dup2(os.open(name, flags), number)
    sys.argv = ["rnow", *order["words"]]
    main()
    sys.exit(0)


for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        become_rnow(json.loads(line))
    _, status = os.waitpid(pid, 0)
    print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)
