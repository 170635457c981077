from io import StringIO

from rich.console import Console

from rnow.runtime.console import make_bar, sayer


def test_a_line_is_shown_as_it_is() -> None:
    output = StringIO()
    line = "going on with runs/a[b] " + "x" * 60
    sayer(Console(file=output, width=40))(line)
    assert output.getvalue() == line + "\n"


def test_where_there_is_no_terminal_there_is_no_bar() -> None:
    output = StringIO()
    with make_bar(Console(file=output)) as bar:
        bar.advance(bar.add_task("evaluating", total=2))
    assert output.getvalue() == ""
