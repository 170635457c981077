"""Named instants at which a test ends this process as a power cut would.

    RNOW_KILL_AT=update/stepped      SIGKILL the first time that point("update/stepped") is passed
    RNOW_KILL_AT=tool/called:3       the third time

That a run may be killed anywhere and goes on bit for bit is only shown by killing it there, in the
code that users run: docs/reliability.md has the list, tests/integration/test_kills.py the proof.
Without the variable, which is for tests alone, a point does nothing.
"""

import os
import signal
from collections import Counter

VARIABLE = "RNOW_KILL_AT"

_passed: Counter[str] = Counter()
_prefix = ""


def prefix(words: str) -> None:
    """Put `words` before the name of every point that this process passes: it is one of several."""
    global _prefix
    _prefix = words


def point(name: str) -> None:
    """Die here if a test asked for it."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    at, _, count = wanted.partition(":")
    name = _prefix + name
    _passed[name] += 1
    if at == name and _passed[name] == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
