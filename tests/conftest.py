"""What every test needs of the process that runs it."""

import os
import signal

import hypothesis
import pytest
from short_runs import ForkedCli, shared_cli

# Tests are of the CPU, whatever the machine has: bits and bounds are those of float32 there. What a
# GPU adds is measured by bench/gpu_smoke.py.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""

# Whoever starts the tests in the background makes them ignore Ctrl-C, and every child of theirs
# would inherit that: a child that is sent SIGINT would go on for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
# So with nohup and a terminal that hangs up: these tests go on after it, their children hear of it.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


# A machine with other work to do takes seconds for what takes milliseconds.
hypothesis.settings.register_profile(
    "busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy")


@pytest.fixture(scope="session")
def rnow() -> ForkedCli:
    """The command line, in processes that need not import anything first."""
    return shared_cli()
