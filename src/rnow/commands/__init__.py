"""One module a command: its Typer function and what it does; all that prints."""
