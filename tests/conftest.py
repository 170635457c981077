"""What every test needs of the process that runs it."""

import os
import signal
from collections.abc import Iterator

import pytest
from short_runs import ForkedCli, forked_cli

# Tests are of the CPU, whatever the machine has: bits and bounds are those of float32 there. What a
# GPU adds is measured by bench/gpu_smoke.py.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""

# Whoever starts the tests in the background makes them ignore Ctrl-C, and every child of theirs
# would inherit that: a child that is sent SIGINT would go on for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def rnow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedCli]:
    """The command line, in processes that need not import anything first."""
    with forked_cli(tmp_path_factory.mktemp("output")) as cli:
        yield cli
