"""What is told where: logs/controller.log with the time of each line, and libraries kept quiet."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class _Handler(logging.FileHandler):
    """A log that cannot be written costs its lines, not the run."""

    _has_told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._has_told:
            self._has_told = True
            error = sys.exc_info()[1]
            print(f"{self.baseFilename} cannot be written: {error}", file=sys.__stderr__)


@contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Append what rnow's modules log to `file`, and nothing of it to the terminal."""
    handler = _Handler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("rnow")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        handler.close()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers within the block, and leave its settings as they were."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft asks for a name that transformers gives up from 5.24 on.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
