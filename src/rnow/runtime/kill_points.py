"""Named instants at which a test ends this process as a power cut would, or has it stand still.

    RNOW_KILL_AT=update/stepped      SIGKILL the first time that point("update/stepped") is passed
    RNOW_KILL_AT=tool/called:3       the third time
    RNOW_HOLD_AT=tool/called:3       SIGSTOP: it goes on when it is sent SIGCONT

That a run may be killed anywhere and goes on bit for bit is only shown by killing it there, in the
code that users run: docs/reliability.md has the list, tests/integration/test_kills.py the proof.
Without the variables, which are for tests alone, a point does nothing.
"""

import os
import signal
from collections import Counter

SIGNALS = {"RNOW_KILL_AT": signal.SIGKILL, "RNOW_HOLD_AT": signal.SIGSTOP}

_passed: Counter[str] = Counter()
_prefix = ""


def prefix(words: str) -> None:
    """Put `words` before the name of every point that this process passes: it is one of several."""
    global _prefix
    _prefix = words


def point(name: str) -> None:
    """Die or stand still here if a test asked for it."""
    wanted = {variable: os.environ[variable] for variable in SIGNALS if variable in os.environ}
    if not wanted:
        return
    name = _prefix + name
    _passed[name] += 1
    for variable, words in wanted.items():
        at, _, count = words.partition(":")
        if at == name and _passed[name] == int(count or 1):
            os.kill(os.getpid(), SIGNALS[variable])
