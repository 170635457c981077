"""A chat template is a program out of a model's folder: it runs in jinja's sandbox, which
transformers makes, and here it gets a limit on its time and on the length of what it writes.

Not held: memory that one expression takes at once (`{{ "x" * 10 ** 10 }}`).
"""

import ctypes
import threading
from collections.abc import Callable

from rnow.errors import TemplateError

_MAX_SECONDS = (
    20.0  # a template takes milliseconds, for the longest conversation a tenth of a second
)
_MAX_CHARS = 50_000_000


class _TooLong(BaseException):
    """Raised inside of a template; a BaseException, so that nothing on the way takes it for its
    own."""


def rendered(
    render: Callable[[], str],
    *,
    name: str,
    max_seconds: float = _MAX_SECONDS,
    max_chars: int = _MAX_CHARS,
) -> str:
    """Return what `render` returns; `name` is the model whose template it runs.

    Raises TemplateError for whatever the template raises, and for one that goes beyond a limit.
    """
    try:
        text = _within(max_seconds, render)
    except _TooLong:
        raise TemplateError(
            f"the chat template of {name} was stopped: it had not rendered these messages after "
            f"{max_seconds:g} s"
        ) from None
    # A template is foreign code that runs on foreign data: it may raise anything.
    except Exception as error:
        raise TemplateError(
            f"the chat template of {name} cannot render these messages: "
            f"{type(error).__name__}: {error}"
        ) from error
    if len(text) > max_chars:
        raise TemplateError(
            f"the chat template of {name} makes {len(text)} characters of these messages; "
            f"{max_chars} are allowed"
        )
    return text


def _within(seconds: float, work: Callable[[], str]) -> str:
    """Run `work` in this thread, and raise _TooLong inside of it when the time is over."""
    thread = ctypes.c_ulong(threading.get_ident())
    lock = threading.Lock()
    state = {"ended": False, "stopped": False}

    def stop() -> None:
        with lock:
            if not state["ended"]:
                state["stopped"] = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_TooLong))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        return work()
    finally:
        with lock:
            state["ended"] = True
            if state["stopped"]:  # where it has not been raised yet it must not be raised later
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)
        timer.cancel()
