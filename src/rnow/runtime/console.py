"""Lines and bars on the terminal, the same in all commands."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

DRAW_EVERY_S = 0.5  # of what is drawn anew
_WAITING_EVERY_S = 15.0  # where there is no bar
_WAITING_WIDTH = 160


def sayer(console: Console) -> Callable[[str], None]:
    """Return what shows a line as it is: in one piece, its brackets no markup."""

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    return say


def make_bar(console: Console) -> Progress:
    """Return a bar that is gone when it ends; nothing of it is shown where there is no terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def is_live(console: Console) -> bool:
    """Whether something can be drawn anew there; elsewhere there are plain lines."""
    return (
        console.is_terminal
        and not console.is_dumb_terminal
        and console.encoding.startswith("utf")
        and not console.quiet
    )


def make_live(console: Console, draw: Callable[[], RenderableType]) -> Live:
    """Return what shows `draw()` below all lines, and nothing of it once it has ended."""
    return Live(
        get_renderable=draw,
        console=console,
        auto_refresh=False,
        transient=True,
        vertical_overflow="crop",
    )


@asynccontextmanager
async def drawn(console: Console, draw: Callable[[], RenderableType]) -> AsyncIterator[None]:
    """Show `draw()` anew every so often while the block runs, as `make_live` does."""
    import asyncio  # takes long, and most commands show nothing so

    from rnow.runtime.side_by_side import end_tasks

    async def redraw() -> None:
        # From the event loop, so that nothing changes while it is drawn.
        while True:
            live.refresh()
            await asyncio.sleep(DRAW_EVERY_S)

    with make_live(console, draw) as live:
        task = asyncio.create_task(redraw(), name="view")
        try:
            yield
        finally:
            await end_tasks(task)


def inert(text: str) -> str:
    """Return a text in which no character but a new line moves the cursor, turns the direction of
    writing, or does more: what models and pages wrote is shown so."""
    text = text.expandtabs(4)
    return "".join(char if char.isprintable() or char == "\n" else "·" for char in text)


class StartTeller:
    """Tells of servers that still start, a line every so often where there is no bar."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told_at: dict[str, float] = {}

    def __call__(self, what: str, waited_s: float, line: str) -> None:
        """`what` is "student" or "teacher", `line` what its server has said last."""
        last = self._told_at.get(what, 0.0)
        # It may be a second start, from 0 again.
        if waited_s < last or waited_s - last >= _WAITING_EVERY_S:
            self._told_at[what] = waited_s
            if waited_s >= _WAITING_EVERY_S:
                self._say(start_text(what, waited_s, line)[:_WAITING_WIDTH])


def start_text(what: str, waited_s: float, line: str) -> str:
    """Say which server is starting, for how long, and what it has said last."""
    return f"the {what}'s server is starting, {duration(waited_s)}: {line}"


def duration(seconds: float) -> str:
    """Return seconds as people say them: `1 h 05 min`, `2 min 30 s`, `7 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
