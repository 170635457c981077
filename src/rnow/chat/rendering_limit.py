"""A chat template is a program out of a model's folder: it runs in jinja's sandbox, which
transformers makes, and here it gets a limit on its time and on the length of what it writes.

What one expression takes at once (`{{ "x" * 10 ** 10 }}`) the system alone can limit, and only for
the process as a whole. So memory is held while a template is read and tried on a run's prompts,
`with memory_held():`, where nothing else of the process works; not in rollouts, whose engine may
ask for as much at the same instant. Where the system keeps no such limit (macOS) it is none.
"""

import ctypes
import math
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
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


@dataclass(slots=True, eq=False)
class _Rendering:
    """One that is under way, in the thread that it is in."""

    ends_at: float  # time.monotonic()
    thread: int = field(default_factory=threading.get_ident)
    is_stopped: bool = False

    def stop(self) -> None:
        self.is_stopped = True
        thread = ctypes.c_ulong(self.thread)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_TooLong))


class _Watch:
    """Stops what takes too long, from one thread for all: a thread for each would take as much time
    as what it watches. It sleeps until the first of the ends; nothing wakes it for a later one.

    What it sends may come while `remove` waits for the lock: a plain Lock is then let go all the
    same, a Condition is not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._earlier = threading.Event()
        self._renderings: set[_Rendering] = set()
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None

    def add(self, rendering: _Rendering) -> None:
        with self._lock:
            self._renderings.add(rendering)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="templates", daemon=True)
                self._thread.start()
            if rendering.ends_at < self._wakes_at:
                self._earlier.set()

    def remove(self, rendering: _Rendering) -> None:
        """From here on nothing is sent to its thread any more."""
        with self._lock:
            self._renderings.discard(rendering)

    def _run(self) -> None:
        while True:
            with self._lock:
                self._earlier.clear()
                now = time.monotonic()
                for late in [each for each in self._renderings if each.ends_at <= now]:
                    self._renderings.discard(late)
                    late.stop()
                self._wakes_at = min((each.ends_at for each in self._renderings), default=math.inf)
            self._earlier.wait(None if self._wakes_at == math.inf else self._wakes_at - now)


_watch = _Watch()
os.register_at_fork(after_in_child=_watch.__init__)  # type: ignore[misc]  # its thread is not there


def _within(seconds: float, work: Callable[[], str]) -> str:
    """Run `work` in this thread, and raise _TooLong inside of it when the time is over."""
    rendering = _Rendering(time.monotonic() + seconds)
    _watch.add(rendering)
    is_raised = False
    try:
        return work()
    except _TooLong:
        is_raised = True
        raise
    finally:
        _watch.remove(rendering)
        if rendering.is_stopped and not is_raised:
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
