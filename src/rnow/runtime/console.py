"""Lines and bars on the terminal, the same in all commands."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["make_bar", "sayer"]


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
