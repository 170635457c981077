"""`python -m rnow` is `rnow`."""

from rnow.cli import main

main()
