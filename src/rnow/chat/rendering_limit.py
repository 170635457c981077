"""A chat template is a program out of a model's folder: it runs in jinja's sandbox, which
transformers makes, and here it gets a limit on its time and on the length of what it writes.

What one expression takes at once (`{{ "x" * 10 ** 10 }}`) the system alone can limit, and only for
the process as a whole. So memory is held while a template is read and tried on a run's prompts,
`with memory_held():`, where nothing else of the process works; not in rollouts, whose engine may
ask for as much at the same instant. Where the system keeps no such limit (macOS) it is none.
"""

import ctypes
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from pathlib import Path

from rnow.errors import TemplateError

_MAX_SECONDS = (
    20.0  # a template takes milliseconds, for the longest conversation a tenth of a second
)
_STEPS_TO_RAISE = 1_000_000  # it is raised at one of the first, if at all
_MAX_CHARS = 50_000_000
_MAX_BYTES = 2 * 2**30  # beyond what the process has; a template takes a few megabytes
_OWN_PAGES = Path("/proc/self/statm")
_held_bytes: ContextVar[int | None] = ContextVar("_held_bytes", default=None)


class _TooLong(BaseException):
    """Raised inside of a template; a BaseException, so that nothing on the way takes it for its
    own."""


@contextmanager
def memory_held(max_bytes: int = _MAX_BYTES) -> Iterator[None]:
    """Hold what is rendered in the block to that; no other thread may need as much meanwhile."""
    token = _held_bytes.set(max_bytes)
    try:
        yield
    finally:
        _held_bytes.reset(token)


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
    max_bytes = _held_bytes.get()
    try:
        with nullcontext() if max_bytes is None else _within_memory(max_bytes):
            text = _within(max_seconds, render)
    except _TooLong:
        raise TemplateError(
            f"the chat template of {name} was stopped: it had not rendered these messages after "
            f"{max_seconds:g} s"
        ) from None
    except MemoryError:
        given = f"a template is given ({max_bytes / 2**30:g} GB)" if max_bytes else "there is"
        raise TemplateError(
            f"the chat template of {name} was stopped: it asks for more memory than {given}"
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
    is_raised = False
    try:
        return work()
    except _TooLong:
        is_raised = True
        raise
    finally:
        with lock:
            state["ended"] = True
        timer.cancel()
        if state["stopped"] and not is_raised:
            _raise_and_forget()


def _raise_and_forget() -> None:
    """Let what was sent to this thread be raised here, where it has not been yet.

    Taking it back would leave Python 3.11 looking for it at every step for ever: a trace, which a
    debugger sets, then never comes beyond the first line of a function.
    """
    with suppress(_TooLong):
        for _ in range(_STEPS_TO_RAISE):
            pass


@contextmanager
def _within_memory(max_bytes: int) -> Iterator[None]:
    """Let the process get `max_bytes` more than it has, where the system counts that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        taken = int(_OWN_PAGES.read_text().split()[0]) * resource.getpagesize()
    except OSError:
        yield
        return
    limits = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (min([taken + max_bytes, *limits]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
