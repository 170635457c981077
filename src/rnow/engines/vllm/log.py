"""What of a vLLM server's log a person should read after its death.

vLLM prints the cause in one process and then, in another, that there was a cause: "Engine core
initialization failed. See root cause above." Between the two are hundreds of lines of frames.
"""

import re

_NUM_LINES = 6
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PREFIX = re.compile(
    r"^(\(\S+( \S+)* pid=\d+\) ?)?((INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d [\d:]+ (\[[^\]]+\] ?)?)?"
)
# An exception's last line, a tool's complaint about its command line, a signal's message.
_TELLING = re.compile(
    r"^[\w.]*(Error|Exception|Interrupt|Exit)\b|\berror: |^Fatal |^Killed|[Ss]egmentation fault"
    r"|[Oo]ut of memory|No module named|^\s*(Value|Assertion) error, "
)
_SAYS_NOTHING = re.compile(
    r"See root cause above|^Exception caught\. |Engine core proc.* died|EngineDeadError"
)


def last_words(log: str, *, was_killed: bool = False) -> str:
    """Return the last few different lines that tell why, or else simply the last lines.

    A process that was killed has not said why: then the last lines say what it was doing.
    """
    lines = _lines(log)
    telling = [line for line in lines if not was_killed and _TELLING.search(line)]
    causes = [line for line in telling if not _SAYS_NOTHING.search(line)]
    chosen = causes or telling or lines or ["(nothing)"]
    different = list(dict.fromkeys(reversed(chosen)))[:_NUM_LINES]
    return "\n".join(f"  {line[:500]}" for line in reversed(different))


def last_line(log: str) -> str:
    """Return the last line, for a progress line; "" where there is none."""
    lines = _lines(log)
    return lines[-1] if lines else ""


def _lines(log: str) -> list[str]:
    # A progress bar rewrites its line: what stands after the last return is what one sees.
    raw = (_ANSI.sub("", line).rstrip().rpartition("\r")[2] for line in log.split("\n"))
    return [line for line in (_PREFIX.sub("", text) for text in raw) if line.strip()]
