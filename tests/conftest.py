"""What every test needs of the process that runs it."""

import signal

# Whoever starts the tests in the background makes them ignore Ctrl-C, and every child of theirs
# would inherit that: a child that is sent SIGINT would go on for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
