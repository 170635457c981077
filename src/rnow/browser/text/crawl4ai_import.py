"""Loading crawl4ai: made quiet, and kept from writing into the home directory."""

import atexit
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_crawl4ai() -> Iterator[None]:
    """Import parts of crawl4ai inside of this."""
    os.environ.setdefault("CRAWL4AI_NO_CLOUD_NOTICE", "1")
    if "CRAWL4_AI_BASE_DIRECTORY" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="rnow-crawl4ai-")
        atexit.register(folder.cleanup)
        os.environ["CRAWL4_AI_BASE_DIRECTORY"] = folder.name
    # At import crawl4ai reads the nearest .env into the environment. What stands there is not its
    # business: the tool worker has already decided which variables there are.
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
